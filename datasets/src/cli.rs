//! The subcommand `datasets` of the binaries.
//!
//! ```no_run
//! use clap::Parser;
//!
//! #[derive(Parser)]
//! enum Command {
//!     /// Public data sets: list, describe, download, import, verify
//!     Datasets(mamba_datasets::cli::DatasetsArgs),
//! }
//!
//! let Command::Datasets(args) = Command::parse();
//! args.run()?;
//! # Ok::<(), mamba_datasets::Error>(())
//! ```

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::registry::{self, Checked, Client, DataSet, Event, Home, Place};
use crate::{Error, Result};

/// Public data sets by name.
#[derive(Clone, Debug, clap::Args)]
pub struct DatasetsArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Action {
    /// Name every data set, its licence, and whether it is on this machine
    #[command(after_help = "Example:\n  datasets list --domain recsys")]
    List {
        /// Only this domain: genomics, recsys, speech, timeseries or motion
        #[arg(long)]
        domain: Option<String>,

        #[command(flatten)]
        output: Output,
    },
    /// Say what a data set is, whom to cite, where it comes from and where it is
    #[command(after_help = "Example:\n  datasets info ml-1m")]
    Info {
        /// The data set
        #[arg(value_parser = registry::info)]
        name: &'static DataSet,

        #[command(flatten)]
        output: Output,
    },
    /// Download data sets into the cache
    #[command(after_help = "\
Says the licence first. A download that was cut goes on where it stopped; every file is kept only with the right \
checksum. Proxies are taken from HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY, certificates from SSL_CERT_FILE.

Example:
  datasets fetch ml-100k etth1")]
    Fetch {
        /// The data sets
        #[arg(required = true, value_name = "NAME", value_parser = registry::info)]
        names: Vec<&'static DataSet>,

        /// No progress on stderr
        #[arg(long)]
        quiet: bool,
    },
    /// Take a data set into the cache from a copy that you have
    #[command(after_help = "\
The copy may be a file, a folder, or a zip, tar, tar.gz or gz file; its files are known by their content.

Example:
  datasets import ml-1m Downloads/ml-1m.zip")]
    Import {
        /// The data set
        #[arg(value_parser = registry::info)]
        name: &'static DataSet,

        /// The copy
        path: PathBuf,
    },
    /// Read data sets that are on this machine and compare their checksums
    #[command(after_help = "Example:\n  datasets verify ml-1m")]
    Verify {
        /// The data sets [default: all that are on this machine]
        #[arg(value_name = "NAME", value_parser = registry::info)]
        names: Vec<&'static DataSet>,
    },
}

#[derive(Clone, Debug, clap::Args)]
struct Output {
    /// Results for people, or one JSON object per line
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    format: Format,
}

#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
enum Format {
    #[default]
    Human,
    Json,
}

impl DatasetsArgs {
    /// Does it; results go to stdout, progress to stderr.
    pub fn run(self) -> Result<()> {
        let home = Home::from_env()?;
        match self.action {
            Action::List { domain, output } => list(&home, domain.as_deref(), output.format),
            Action::Info { name, output } => info(&home, name, output.format),
            Action::Fetch { names, quiet } => fetch(&home, &names, quiet),
            Action::Import { name, path } => import(&home, name, &path),
            Action::Verify { names } => verify(&home, &names),
        }
    }
}

fn list(home: &Home, domain: Option<&str>, format: Format) -> Result<()> {
    let is_wanted = |set: &&DataSet| domain.is_none_or(|domain| domain.eq_ignore_ascii_case(&set.domain));
    let sets: Vec<&DataSet> = registry::list().iter().filter(is_wanted).collect();
    if sets.is_empty() {
        let reason = format!("no data set is of domain {:?}", domain.unwrap_or_default());
        return Err(Error::Environment { variable: "--domain", reason });
    }
    if let Format::Json = format {
        return sets.iter().try_for_each(|set| say(&json(home, set).to_string()));
    }
    let width = sets.iter().map(|set| set.name.len()).max().unwrap_or(0);
    let mut domain = "";
    for set in sets {
        if domain != set.domain {
            say(&format!("{}{}", if domain.is_empty() { "" } else { "\n" }, set.domain))?;
            domain = &set.domain;
        }
        let (name, size, here) =
            (&set.name, HumanBytes(set.bytes()).to_string(), short(&home.find(set), set));
        say(&format!(
            "  {name:width$}  {size:>10}  {here:10}  {}\n  {:width$}  {:>10}  {:10}  {}",
            set.title, "", "", "", set.licence
        ))?;
    }
    say(&format!("\ncache: {}", home.cache().display()))
}

/// A word on where a set is.
fn short(place: &Place, set: &DataSet) -> &'static str {
    match place {
        Place::Cache(_) => "cached",
        Place::Data(_) => "MAMBA_DATA",
        Place::Packed(_) => "MAMBA_DATA?",
        Place::Bundled => "bundled",
        Place::Absent if set.is_fetchable() => "fetch",
        Place::Absent => "import",
    }
}

fn info(home: &Home, set: &DataSet, format: Format) -> Result<()> {
    if let Format::Json = format {
        return say(&json(home, set).to_string());
    }
    let place = match home.find(set) {
        Place::Cache(folder) => folder.display().to_string(),
        Place::Data(folder) => format!("{} ($MAMBA_DATA)", folder.display()),
        Place::Packed(folder) => format!("perhaps packed in {} ($MAMBA_DATA)", folder.display()),
        Place::Bundled => "part of this program".to_owned(),
        Place::Absent => "not on this machine".to_owned(),
    };
    let checked = |what| set.files.iter().filter(|file| file.checked == what).count();
    let checksums = match (checked(Checked::Upstream), checked(Checked::Copy)) {
        (_, 0) => "compared with the files upstream".to_owned(),
        (0, _) => "of a copy; not compared with the file upstream".to_owned(),
        (yes, no) => format!("{yes} compared with the files upstream, {no} of a copy"),
    };
    let download = match (&set.archive, set.is_fetchable()) {
        (Some(archive), _) => archive.url.clone(),
        (None, true) => match &set.files[..] {
            [only] => only.url.clone().unwrap_or_default(),
            files => format!("{} and {} more", files[0].url.as_deref().unwrap_or_default(), files.len() - 1),
        },
        (None, false) => "none".to_owned(),
    };
    let size = format!(
        "{} in {} file{}",
        HumanBytes(set.bytes()),
        set.files.len(),
        if set.files.len() == 1 { "" } else { "s" }
    );
    for (label, text) in [
        ("name", &set.name),
        ("title", &set.title),
        ("domain", &set.domain),
        ("licence", &set.licence),
        ("cite", &set.citation),
        ("source", &set.source),
        ("size", &size),
        ("download", &download),
        ("import", &set.import),
        ("checksums", &checksums),
        ("here", &place),
    ] {
        say(&format!("{label:10} {text}"))?;
    }
    say("")?;
    for file in set.files.iter().take(20) {
        say(&format!("{:>12}  {}  {}", file.bytes, file.digest, file.path))?;
    }
    match set.files.len().checked_sub(20) {
        None | Some(0) => Ok(()),
        Some(more) => say(&format!("… and {more} more: --format json names all")),
    }
}

fn json(home: &Home, set: &DataSet) -> serde_json::Value {
    let (state, folder) = match home.find(set) {
        Place::Cache(folder) => ("cached", Some(folder)),
        Place::Data(folder) => ("mamba_data", Some(folder)),
        Place::Packed(folder) => ("packed", Some(folder)),
        Place::Bundled => ("bundled", None),
        Place::Absent => ("absent", None),
    };
    let files = set.files.iter().map(|file| {
        serde_json::json!({
            "path": file.path, "bytes": file.bytes, "digest": file.digest.to_string(),
            "checked": file.checked, "url": file.url,
        })
    });
    serde_json::json!({
        "name": set.name, "title": set.title, "domain": set.domain, "licence": set.licence,
        "citation": set.citation, "source": set.source, "import": set.import,
        "archive": set.archive.as_ref().map(|archive| &archive.url),
        "fetchable": set.is_fetchable(), "state": state, "folder": folder,
        "files": files.collect::<Vec<_>>(),
    })
}

fn fetch(home: &Home, sets: &[&DataSet], quiet: bool) -> Result<()> {
    let client = Client::from_env()?;
    for set in sets {
        let mut display = Display::new(quiet);
        let folder = registry::fetch(set, home, &client, &mut |event| display.show(event))?;
        display.finish();
        say(&folder.display().to_string())?;
    }
    Ok(())
}

fn import(home: &Home, set: &DataSet, path: &Path) -> Result<()> {
    registry::import(set, path, home)?;
    say(&home.folder(set).display().to_string())
}

fn verify(home: &Home, names: &[&'static DataSet]) -> Result<()> {
    let is_here = |set: &&DataSet| !matches!(home.find(set), Place::Absent | Place::Packed(_));
    let sets =
        if names.is_empty() { registry::list().iter().filter(is_here).collect() } else { names.to_vec() };
    let mut first = None;
    for set in sets {
        match home.verify(set) {
            Ok(_) => say(&format!("{}: {} files, as they should be", set.name, set.files.len()))?,
            Err(error) => {
                say(&format!("{}: {error}", set.name))?;
                first = first.or(Some(error));
            }
        }
    }
    first.map_or(Ok(()), Err)
}

/// One line to stdout.
fn say(line: &str) -> Result<()> {
    writeln!(std::io::stdout().lock(), "{line}").map_err(Error::io("write", Path::new("standard output")))
}

/// Progress of a download: a bar on a terminal, else a line now and then. The licence is said even when quiet.
struct Display {
    quiet: bool,
    bar: ProgressBar,
    total: u64,
    /// Bytes of files that are done, and of the current one when it began and now.
    before: u64,
    current: (Option<u64>, u64),
    line: Instant,
}

impl Display {
    fn new(quiet: bool) -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        Self { quiet, bar, total: 0, before: 0, current: (None, 0), line: Instant::now() }
    }

    fn show(&mut self, event: Event) {
        match event {
            Event::Begin { set, bytes } => {
                eprintln!(
                    "{}: {}\nlicence: {}\ncite: {}\nsource: {}",
                    set.name, set.title, set.licence, set.citation, set.source
                );
                self.total = bytes;
                if !self.quiet && std::io::stderr().is_terminal() {
                    self.bar = ProgressBar::with_draw_target(Some(bytes), ProgressDrawTarget::stderr());
                    let template = "{bar:24} {bytes}/{total_bytes}  {bytes_per_sec}  eta {eta}  {msg}";
                    let style = ProgressStyle::with_template(template).expect("the template is valid");
                    self.bar.set_style(style.progress_chars("━━╌"));
                }
            }
            Event::File { path, .. } => {
                self.before += self.current.1;
                self.current = (None, 0);
                self.bar.set_message(path.to_owned());
            }
            Event::Bytes { done } => {
                let start = *self.current.0.get_or_insert(done.saturating_sub(1 << 16));
                self.current.1 = done.saturating_sub(start);
                self.bar.set_position(self.before + self.current.1);
                if !self.quiet && self.bar.is_hidden() && self.line.elapsed() >= Duration::from_secs(10) {
                    self.line = Instant::now();
                    eprintln!("{} of {}", HumanBytes(self.before + self.current.1), HumanBytes(self.total));
                }
            }
            Event::Retry { url, reason, pause } => {
                self.bar.suspend(|| eprintln!("{url}: {reason}; again in {} s", pause.as_secs_f32()));
            }
        }
    }

    fn finish(self) {
        self.bar.finish_and_clear();
    }
}
