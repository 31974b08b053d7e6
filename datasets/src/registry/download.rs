//! One file over HTTP, resumed where it was cut.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Duration;

use ureq::Agent;
use ureq::http::header::{CONTENT_LENGTH, CONTENT_RANGE, RANGE};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};

use super::Event;
use crate::{Error, Result};

/// How files are downloaded.
#[derive(Clone, Debug)]
pub struct Client {
    agent: Agent,
    /// How often in a row a download may fail without a byte gained.
    retries: u32,
    /// The pause after the first failure; it doubles with each.
    pause: Duration,
}

impl Client {
    /// A client that follows the environment: proxies from `ALL_PROXY`, `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY`, and
    /// certificates from the PEM file in `SSL_CERT_FILE` in place of Mozilla's.
    pub fn from_env() -> Result<Self> {
        let mut tls = TlsConfig::builder();
        if let Some(path) = std::env::var_os("SSL_CERT_FILE").filter(|path| !path.is_empty()) {
            let wrong = |reason: String| Error::Environment { variable: "SSL_CERT_FILE", reason };
            let shown = Path::new(&path).display();
            let pem = std::fs::read(&path).map_err(|e| wrong(format!("cannot read {shown}: {e}")))?;
            let mut certificates: Vec<Certificate<'static>> = Vec::new();
            for item in parse_pem(&pem) {
                match item.map_err(|e| wrong(format!("{shown}: {e}")))? {
                    PemItem::Certificate(certificate) => certificates.push(certificate),
                    _ => continue,
                }
            }
            if certificates.is_empty() {
                return Err(wrong(format!("{shown} holds no certificate")));
            }
            tls = tls.root_certs(RootCerts::Specific(certificates.into()));
        }
        let config = Agent::config_builder()
            .tls_config(tls.build())
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(30)))
            .timeout_per_read(Some(Duration::from_secs(60)))
            .user_agent(concat!("mamba-zoo/", env!("CARGO_PKG_VERSION")));
        Ok(Self { agent: config.build().into(), retries: 4, pause: Duration::from_secs(1) })
    }

    /// How often in a row a download may fail without a byte gained, and the pause after the first failure, which
    /// doubles with each.
    pub fn retries(mut self, retries: u32, pause: Duration) -> Self {
        (self.retries, self.pause) = (retries, pause);
        self
    }

    /// Downloads to the file `part`, going on from what it holds already. `expected` is the size, where it is known.
    pub(super) fn download(
        &self,
        url: &str,
        part: &Path,
        expected: Option<u64>,
        report: &mut dyn FnMut(Event),
    ) -> Result<()> {
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(part);
        let mut file = open.map_err(Error::io("create", part))?;
        match file.try_lock() {
            // Where a file system knows no locks, two downloads of one file spoil each other, and the checksum tells.
            Ok(()) | Err(TryLockError::Error(_)) => {}
            Err(TryLockError::WouldBlock) => {
                let reason = "another process is downloading it".to_owned();
                return Err(Error::Download { url: url.to_owned(), reason });
            }
        }
        let mut failures = 0;
        loop {
            let before = file.seek(SeekFrom::End(0)).map_err(Error::io("read", part))?;
            let reason = match self.attempt(url, part, &mut file, before, expected, report) {
                Ok(()) => return file.sync_all().map_err(Error::io("write", part)),
                Err(Stop::Error(error)) => return Err(error),
                Err(Stop::Refused(reason)) => return Err(Error::Download { url: url.to_owned(), reason }),
                Err(Stop::Cut(reason)) => reason,
            };
            let after = file.seek(SeekFrom::End(0)).map_err(Error::io("read", part))?;
            failures = if after > before { 1 } else { failures + 1 };
            if failures > self.retries {
                return Err(Error::Download { url: url.to_owned(), reason });
            }
            let pause = self.pause * 2u32.saturating_pow(failures - 1);
            report(Event::Retry { url, reason: &reason, pause });
            std::thread::sleep(pause);
        }
    }

    /// One request, whose answer is appended to the `have` bytes of the file.
    fn attempt(
        &self,
        url: &str,
        part: &Path,
        file: &mut File,
        have: u64,
        expected: Option<u64>,
        report: &mut dyn FnMut(Event),
    ) -> Result<(), Stop> {
        let disk = |e| Stop::Error(Error::io("write", part)(e));
        if expected == Some(have) {
            return Ok(());
        }
        let mut request = self.agent.get(url);
        if have > 0 {
            request = request.header(RANGE, format!("bytes={have}-"));
        }
        let answer = request.call().map_err(transport)?;
        let status = answer.status();
        let header = |name| answer.headers().get(name).and_then(|value| value.to_str().ok());
        let range = header(CONTENT_RANGE).and_then(content_range);
        let length = header(CONTENT_LENGTH).and_then(|length| length.parse::<u64>().ok());

        let (start, total) = match status.as_u16() {
            // The server sends the whole file, asked for a range or not.
            200 => (0, length),
            206 => match range {
                Some((Some(start), total)) if start == have => (have, total),
                _ => {
                    file.set_len(0).map_err(disk)?;
                    return Err(Stop::Cut("the server sent another range than was asked for".into()));
                }
            },
            // Nothing is left to send.
            416 if expected.is_none() && range == Some((None, Some(have))) => return Ok(()),
            416 => {
                file.set_len(0).map_err(disk)?;
                return Err(Stop::Cut("the server's file is shorter than what was downloaded before".into()));
            }
            408 | 429 | 500.. => return Err(Stop::Cut(format!("the server answers {status}"))),
            _ => return Err(Stop::Refused(format!("the server answers {status}"))),
        };
        if let (Some(total), Some(expected)) = (total, expected)
            && total != expected
        {
            return Err(Stop::Refused(format!(
                "the file there has {total} bytes, expected {expected}: it was changed"
            )));
        }
        file.set_len(start).map_err(disk)?;
        file.seek(SeekFrom::Start(start)).map_err(disk)?;

        let mut body = answer.into_body().into_reader();
        let mut buffer = vec![0; 1 << 16];
        let mut done = start;
        loop {
            let read =
                body.read(&mut buffer).map_err(|e| Stop::Cut(format!("the connection was cut: {e}")))?;
            if read == 0 {
                break;
            }
            file.write_all(&buffer[..read]).map_err(disk)?;
            done += read as u64;
            if expected.is_some_and(|expected| done > expected) {
                return Err(Stop::Refused(format!(
                    "the file there has more than the {} bytes expected",
                    done - read as u64
                )));
            }
            report(Event::Bytes { done });
        }
        match expected.or(total) {
            Some(total) if done < total => {
                Err(Stop::Cut(format!("the connection was cut after {done} of {total} bytes")))
            }
            _ => Ok(()),
        }
    }
}

/// Why an attempt ended.
enum Stop {
    /// Trying again may help.
    Cut(String),
    /// Trying again will not help.
    Refused(String),
    /// A file of ours.
    Error(Error),
}

fn transport(error: ureq::Error) -> Stop {
    match error {
        ureq::Error::HostNotFound => {
            Stop::Refused("its host is not known here; is there a connection?".into())
        }
        ureq::Error::Io(_) | ureq::Error::Timeout(_) | ureq::Error::ConnectionFailed => {
            Stop::Cut(error.to_string())
        }
        other => Stop::Refused(other.to_string()),
    }
}

/// Start and total of `bytes 5-9/10`, `bytes 5-9/*` and `bytes */10`.
fn content_range(text: &str) -> Option<(Option<u64>, Option<u64>)> {
    let (range, total) = text.trim().strip_prefix("bytes")?.trim().split_once('/')?;
    let start = match range {
        "*" => None,
        range => Some(range.split_once('-')?.0.parse().ok()?),
    };
    let total = match total {
        "*" => None,
        total => Some(total.parse().ok()?),
    };
    Some((start, total))
}

#[cfg(test)]
mod tests {
    use super::content_range;

    #[test]
    fn ranges_are_read() {
        assert_eq!(content_range("bytes 5-9/10"), Some((Some(5), Some(10))));
        assert_eq!(content_range("bytes 5-9/*"), Some((Some(5), None)));
        assert_eq!(content_range("bytes */10"), Some((None, Some(10))));
        for wrong in ["", "bytes", "lines 1-2/3", "bytes x-2/3", "bytes 1-2", "bytes 1-2/x"] {
            assert_eq!(content_range(wrong), None, "{wrong}");
        }
    }
}
