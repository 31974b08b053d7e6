//! Progress on stderr: a bar on a terminal, else one line now and then.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// How results are printed: for people, or one JSON object per line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Format {
    /// Aligned text.
    #[default]
    Human,
    /// JSON on stdout.
    Json,
}

/// Time between two lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Progress of a batch job, in units such as `bp` or `users`.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    unit: String,
    /// Off a terminal: when the next line is due. `None` where the bar draws itself, or when quiet.
    next_line: Option<Instant>,
    started: Instant,
}

/// Starts a progress display. `len` is the amount of work, if known; `quiet` shows nothing.
pub fn progress(len: Option<u64>, unit: &str, quiet: bool) -> Progress {
    let terminal = std::io::stderr().is_terminal();
    let bar = new_bar(len, quiet || !terminal);
    let bar_with_length = "{bar:24} {human_pos}/{human_len} {prefix}  {per_sec}  eta {eta}  {msg}";
    bar.set_style(style(if len.is_some() {
        bar_with_length
    } else {
        "{spinner} {human_pos} {prefix}  {per_sec}  {msg}"
    }));
    bar.set_prefix(unit.to_string());
    let started = Instant::now();
    let next_line = (!quiet && !terminal).then(|| started + LINE_EVERY);
    Progress { bar, unit: unit.to_string(), next_line, started }
}

impl Progress {
    /// Reports `n` more units as done.
    pub fn inc(&mut self, n: u64) {
        self.bar.inc(n);
        if self.next_line.is_some_and(|due| Instant::now() >= due) {
            self.next_line = Some(Instant::now() + LINE_EVERY);
            eprintln!("{}", self.line());
        }
    }

    /// Prints a line to stderr without tearing the bar.
    pub fn note(&self, line: &str) {
        self.bar.suspend(|| eprintln!("{line}"));
    }

    /// Removes the bar; off a terminal prints the last line.
    pub fn finish(self) {
        self.bar.finish_and_clear();
        if self.next_line.is_some() {
            eprintln!("{}", self.line());
        }
    }

    fn line(&self) -> String {
        let done = self.bar.position() as f64;
        let rate = done / self.started.elapsed().as_secs_f64().max(1e-9);
        let (of, eta) = match self.bar.length() {
            Some(len) => (
                format!("/{}", short(len as f64)),
                format!("  eta {}", clock((len as f64 - done).max(0.0) / rate.max(1e-9))),
            ),
            None => (String::new(), String::new()),
        };
        format!("{}{of} {unit}  {} {unit}/s{eta}", short(done), short(rate), unit = self.unit)
    }
}

/// A bar on stderr, or one that draws nothing.
pub(crate) fn new_bar(len: Option<u64>, hidden: bool) -> ProgressBar {
    let target = if hidden { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    ProgressBar::with_draw_target(len, target)
}

pub(crate) fn style(template: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template).expect("the templates of this crate are valid");
    style.progress_chars("━━╌")
}

/// A number with three digits and a suffix: `12.3k`, `4.94M`.
pub fn short(x: f64) -> String {
    let (value, suffix) = match x.abs() {
        a if a >= 999.5e9 => return format!("{x:.2e}"),
        a if a >= 999.5e6 => (x / 1e9, "G"),
        a if a >= 999.5e3 => (x / 1e6, "M"),
        a if a >= 999.5 => (x / 1e3, "k"),
        _ => (x, ""),
    };
    match value.abs() {
        a if suffix.is_empty() && a.fract() == 0.0 => format!("{value:.0}"),
        a if a >= 99.95 => format!("{value:.0}{suffix}"),
        a if a >= 9.995 => format!("{value:.1}{suffix}"),
        _ => format!("{value:.2}{suffix}"),
    }
}

/// Seconds as `02:10`, or `1:02:10` from an hour up.
pub fn clock(seconds: f64) -> String {
    if !(0.0..3.6e8).contains(&seconds) {
        return "--:--".into();
    }
    let s = seconds.round() as u64;
    let (h, m, s) = (s / 3600, s / 60 % 60, s % 60);
    if h > 0 { format!("{h}:{m:02}:{s:02}") } else { format!("{m:02}:{s:02}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let cases = [
            (0.0, "0"),
            (7.0, "7"),
            (0.5, "0.50"),
            (999.0, "999"),
            (12_345.0, "12.3k"),
            (999_600.0, "1.00M"),
            (4_941_439.0, "4.94M"),
            (123.4e9, "123G"),
        ];
        for (x, text) in cases {
            assert_eq!(short(x), text);
        }
    }

    #[test]
    fn times_are_clocks() {
        let times = [130.0, 59.6, 3730.0, f64::INFINITY, f64::NAN].map(clock);
        assert_eq!(times, ["02:10", "01:00", "1:02:10", "--:--", "--:--"]);
    }
}
