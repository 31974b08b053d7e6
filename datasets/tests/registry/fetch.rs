//! Downloads that go well, and those that do not.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use flate2::{Compression, write::GzEncoder};
use mamba_datasets::Error;
use mamba_datasets::job::sha256;
use mamba_datasets::registry::{Client, DataSet, Event, Home, Place, Registry, fetch};
use std::io::Write;

use super::server::{Server, answer, cut, ranged, whole};

/// Bytes that no compression or repetition hides a mistake in.
fn content(bytes: usize) -> Vec<u8> {
    let mut state = 1u32;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..bytes).map(next).collect()
}

/// A set of one file at `url`.
fn one(url: &str, content: &[u8]) -> DataSet {
    let sets = "[[set]]\nname = \"toy\"\ntitle = \"t\"\nfolder = \"test/toy\"\nlicence = \"CC0\"\ncitation = \"c\"\n\
                source = \"s\"\nimport = \"the file x.bin\"\n";
    let files = format!("#\ntoy\tx.bin\t{}\tsha256:{}\tupstream\t{url}\n", content.len(), sha256(content));
    Registry::parse("test", sets, &files).unwrap().sets()[0].clone()
}

fn client() -> Client {
    Client::from_env().unwrap().retries(3, Duration::from_millis(1))
}

fn quietly(set: &DataSet, home: &Home) -> Result<PathBuf, Error> {
    fetch(set, home, &client(), &mut |_| {})
}

/// An error with its cause.
fn full(error: &Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

fn files(folder: &Path) -> Vec<String> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(files(&path));
        } else {
            all.push(path.file_name().unwrap().to_string_lossy().into_owned());
        }
    }
    all.sort();
    all
}

#[test]
fn a_set_is_fetched_once_and_its_licence_is_said_first() {
    let (dir, content) = (tempfile::tempdir().unwrap(), content(200_000));
    let server = {
        let content = content.clone();
        Server::start(move |_, r| ranged(r, &content))
    };
    let (set, home) = (one(&server.url("/x.bin"), &content), Home::new(dir.path(), None));
    assert_eq!(home.find(&set), Place::Absent);

    let mut events = Vec::new();
    let folder = fetch(&set, &home, &client(), &mut |event| {
        events.push(match event {
            Event::Begin { set, bytes } => format!("begin {} {bytes}", set.licence),
            Event::File { path, bytes } => format!("file {path} {bytes}"),
            Event::Bytes { done } => format!("done {done}"),
            other => format!("{other:?}"),
        });
    })
    .unwrap();
    assert_eq!(&events[..2], ["begin CC0 200000", "file x.bin 200000"]);
    assert_eq!(events.last().unwrap(), "done 200000");
    assert_eq!(std::fs::read(folder.join("x.bin")).unwrap(), content);
    assert_eq!(home.resolve(&set, "").unwrap(), folder.join("x.bin"));
    assert_eq!(files(dir.path()), ["x.bin"]);

    assert_eq!(quietly(&set, &home).unwrap(), folder);
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn a_cut_connection_is_resumed() {
    let (dir, content) = (tempfile::tempdir().unwrap(), content(300_000));
    let server = {
        let content = content.clone();
        Server::start(move |number, r| match number {
            0 => cut(ranged(r, &content), 200_000),
            1 => cut(ranged(r, &content), 100_000),
            _ => ranged(r, &content),
        })
    };
    let (set, home) = (one(&server.url("/x.bin"), &content), Home::new(dir.path(), None));
    let folder = quietly(&set, &home).unwrap();
    assert_eq!(std::fs::read(folder.join("x.bin")).unwrap(), content);
    let ranges: Vec<_> = server.requests().iter().map(|r| r.range()).collect();
    assert_eq!(ranges, [None, Some(100_000), Some(200_000)]);
}

#[test]
fn another_run_goes_on_where_the_first_was_cut() {
    let (dir, content) = (tempfile::tempdir().unwrap(), content(300_000));
    let server = {
        let content = content.clone();
        Server::start(move |number, r| match number {
            0 => cut(ranged(r, &content), 100_000),
            1..=4 => answer("503 Service Unavailable", &["Content-Length: 0".into()], b""),
            _ => ranged(r, &content),
        })
    };
    let (set, home) = (one(&server.url("/x.bin"), &content), Home::new(dir.path(), None));
    let error = full(&quietly(&set, &home).unwrap_err());
    assert!(
        error.contains("the server answers 503") && error.contains("`datasets import toy PATH`"),
        "{error}"
    );
    assert_eq!(home.find(&set), Place::Absent);
    quietly(&set, &home).unwrap();
    assert_eq!(server.requests().last().unwrap().range(), Some(200_000));
    assert_eq!(files(dir.path()), ["x.bin"]);
}

#[test]
fn a_server_without_ranges_sends_it_all_again() {
    let (dir, content) = (tempfile::tempdir().unwrap(), content(100_000));
    let server = {
        let content = content.clone();
        Server::start(
            move |number, _| if number == 0 { cut(whole(&content), 40_000) } else { whole(&content) },
        )
    };
    let (set, home) = (one(&server.url("/x.bin"), &content), Home::new(dir.path(), None));
    let folder = quietly(&set, &home).unwrap();
    assert_eq!(std::fs::read(folder.join("x.bin")).unwrap(), content);
    assert_eq!(server.requests()[1].range(), Some(60_000));
}

#[test]
fn a_wrong_range_begins_anew() {
    let (dir, content) = (tempfile::tempdir().unwrap(), content(100_000));
    let server = {
        let content = content.clone();
        Server::start(move |number, r| match number {
            0 => cut(whole(&content), 40_000),
            1 => {
                answer("206 Partial Content", &["Content-Range: bytes 5-99999/100000".into()], &content[5..])
            }
            _ => ranged(r, &content),
        })
    };
    let (set, home) = (one(&server.url("/x.bin"), &content), Home::new(dir.path(), None));
    let folder = quietly(&set, &home).unwrap();
    assert_eq!(std::fs::read(folder.join("x.bin")).unwrap(), content);
    assert_eq!(server.requests()[2].range(), None);
}

#[test]
fn corruption_is_refused_and_nothing_stays() {
    let (dir, content) = (tempfile::tempdir().unwrap(), content(50_000));
    let server = {
        let mut wrong = content.clone();
        wrong[40_000] ^= 1;
        Server::start(move |_, r| ranged(r, &wrong))
    };
    let (set, home) = (one(&server.url("/x.bin"), &content), Home::new(dir.path(), None));
    let error = full(&quietly(&set, &home).unwrap_err());
    assert!(error.contains("is not the file that is expected: SHA-256"), "{error}");
    assert!(error.contains("the file x.bin"), "it says how to import: {error}");
    assert!(files(dir.path()).is_empty());
}

#[test]
fn what_an_earlier_run_left_of_another_file_is_fetched_anew() {
    let (dir, content) = (tempfile::tempdir().unwrap(), content(50_000));
    let server = {
        let content = content.clone();
        Server::start(move |_, r| ranged(r, &content))
    };
    let (set, home) = (one(&server.url("/x.bin"), &content), Home::new(dir.path(), None));
    let parts = dir.path().join("downloads/toy");
    std::fs::create_dir_all(&parts).unwrap();
    for stale in [vec![7; 20_000], vec![7; 50_000], vec![7; 60_000]] {
        std::fs::write(parts.join("00000.part"), stale).unwrap();
        let folder = quietly(&set, &home).unwrap();
        assert_eq!(std::fs::read(folder.join("x.bin")).unwrap(), content);
        std::fs::remove_dir_all(&folder).unwrap();
        std::fs::create_dir_all(&parts).unwrap();
    }
}

#[test]
fn a_file_of_another_length_is_refused_before_it_is_loaded() {
    let (dir, content) = (tempfile::tempdir().unwrap(), content(50_000));
    let server = {
        let longer = [&content[..], b"!"].concat();
        Server::start(move |_, r| ranged(r, &longer))
    };
    let (set, home) = (one(&server.url("/x.bin"), &content), Home::new(dir.path(), None));
    let error = full(&quietly(&set, &home).unwrap_err());
    assert!(error.contains("the file there has 50001 bytes, expected 50000: it was changed"), "{error}");

    // The same without a length in the answer.
    let server = {
        let longer = [&content[..], b"!"].concat();
        Server::start(move |_, _| answer("200 OK", &[], &longer))
    };
    let set = one(&server.url("/x.bin"), &content);
    let error = full(&quietly(&set, &home).unwrap_err());
    assert!(error.contains("more than the") && error.contains("bytes expected"), "{error}");
    assert!(home.find(&set) == Place::Absent);
}

#[test]
fn a_missing_file_is_not_asked_for_twice() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(|_, _| answer("404 Not Found", &["Content-Length: 4".into()], b"gone"));
    let (set, home) = (one(&server.url("/x.bin"), b"abc"), Home::new(dir.path(), None));
    let error = full(&quietly(&set, &home).unwrap_err());
    assert!(
        error.contains("the server answers 404 Not Found") && error.contains("datasets import toy"),
        "{error}"
    );
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn a_redirect_is_followed() {
    let (dir, content) = (tempfile::tempdir().unwrap(), content(100_000));
    let server = {
        let content = content.clone();
        Server::start(move |number, r| match (r.path(), number) {
            ("/old.bin", _) => {
                answer("302 Found", &["Location: /new.bin".into(), "Content-Length: 0".into()], b"")
            }
            (_, 1) => cut(ranged(r, &content), 30_000),
            _ => ranged(r, &content),
        })
    };
    let (set, home) = (one(&server.url("/old.bin"), &content), Home::new(dir.path(), None));
    let folder = quietly(&set, &home).unwrap();
    assert_eq!(std::fs::read(folder.join("x.bin")).unwrap(), content);
    let requests = server.requests();
    let seen: Vec<_> = requests.iter().map(|r| (r.path(), r.range())).collect();
    let from = Some(70_000);
    assert_eq!(seen, [("/old.bin", None), ("/new.bin", None), ("/old.bin", from), ("/new.bin", from)]);
}

#[test]
fn no_server_says_how_to_import() {
    let dir = tempfile::tempdir().unwrap();
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (set, home) = (one(&format!("http://{address}/x.bin"), b"abc"), Home::new(dir.path(), None));
    let error = full(&quietly(&set, &home).unwrap_err());
    assert!(
        error.contains("`datasets import toy PATH` takes a copy that you have: the file x.bin"),
        "{error}"
    );
}

#[test]
fn a_gzip_address_is_unpacked_and_a_truncated_one_refused() {
    let (dir, content) = (tempfile::tempdir().unwrap(), content(50_000));
    let mut gz = GzEncoder::new(Vec::new(), Compression::fast());
    gz.write_all(&content).unwrap();
    let gz = gz.finish().unwrap();
    let home = Home::new(dir.path(), None);
    let server = {
        let gz = gz[..gz.len() / 2].to_vec();
        Server::start(move |_, r| ranged(r, &gz))
    };
    let error = full(&quietly(&one(&server.url("/x.bin.gz"), &content), &home).unwrap_err());
    assert!(error.contains("is not a whole archive"), "{error}");
    let server =
        Server::start(move |number, r| if number == 0 { cut(ranged(r, &gz), 9000) } else { ranged(r, &gz) });
    let folder = quietly(&one(&server.url("/x.bin.gz"), &content), &home).unwrap();
    assert_eq!(std::fs::read(folder.join("x.bin")).unwrap(), content);
}

#[test]
fn an_archive_is_fetched_checked_and_taken_apart() {
    let dir = tempfile::tempdir().unwrap();
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, content) in [("toy/a.txt", "first"), ("toy/b.txt", "second")] {
        zip.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(content.as_bytes()).unwrap();
    }
    let zip = zip.finish().unwrap().into_inner();
    let server = {
        let zip = zip.clone();
        Server::start(move |n, r| if n == 0 { cut(ranged(r, &zip), 50) } else { ranged(r, &zip) })
    };
    let sets = |hash: &str| {
        let sets = format!(
            "[[set]]\nname = \"toy\"\ntitle = \"t\"\nfolder = \"test/toy\"\nlicence = \"CC0\"\ncitation = \"c\"\nsource = \"s\"\n\
             import = \"toy.zip\"\narchive = {{ url = \"{}\", bytes = {}, sha256 = \"{hash}\" }}\n",
            server.url("/toy.zip"),
            zip.len()
        );
        let files = format!(
            "#\ntoy\ta.txt\t5\tsha256:{}\tupstream\t\ntoy\tb.txt\t6\tsha256:{}\tupstream\t\n",
            sha256(b"first"),
            sha256(b"second")
        );
        Registry::parse("test", &sets, &files).unwrap().sets()[0].clone()
    };
    let home = Home::new(dir.path(), None);
    let error = full(&quietly(&sets(&"0".repeat(64)), &home).unwrap_err());
    assert!(error.contains("is not the file that is expected"), "{error}");
    assert!(files(dir.path()).is_empty());
    let folder = quietly(&sets(&sha256(&zip)), &home).unwrap();
    assert_eq!(files(dir.path()), ["a.txt", "b.txt"]);
    assert_eq!(std::fs::read(folder.join("b.txt")).unwrap(), b"second");
}

/// The environment belongs to the whole process, so this test runs itself again in one of its own.
#[test]
fn proxies_come_from_the_environment() {
    const CHILD: &str = "MAMBA_TEST_PROXY_CHILD";
    if let Some(dir) = std::env::var_os(CHILD) {
        // No host has this name: only a proxy can answer.
        let set = one("http://data.invalid/x.bin", b"by proxy");
        let folder = quietly(&set, &Home::new(dir, None)).unwrap();
        assert_eq!(std::fs::read(folder.join("x.bin")).unwrap(), b"by proxy");
        return;
    }
    let server = Server::start(|_, _| whole(b"by proxy"));
    let dir = tempfile::tempdir().unwrap();
    let run = |proxy: &str| {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "fetch::proxies_come_from_the_environment", "--nocapture"])
            .env(CHILD, dir.path())
            .env_remove("ALL_PROXY")
            .env_remove("all_proxy")
            .env_remove("HTTPS_PROXY")
            .env_remove("https_proxy")
            .env_remove("NO_PROXY")
            .env_remove("no_proxy")
            .env_remove("http_proxy")
            .env("HTTP_PROXY", proxy)
            .output()
            .unwrap()
    };
    let output = run(&server.url(""));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines: Vec<_> = server.requests().into_iter().map(|request| request.line).collect();
    assert_eq!(lines, ["CONNECT data.invalid:80 HTTP/1.1", "GET /x.bin HTTP/1.1"]);
}
