//! A small HTTP server whose behaviour a test chooses.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// One request: its first line and its headers in lower case.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) line: String,
    pub(crate) headers: Vec<String>,
}

impl Request {
    /// The first byte of a `range: bytes=N-` header.
    pub(crate) fn range(&self) -> Option<usize> {
        let header = self.headers.iter().find_map(|h| h.strip_prefix("range: bytes="))?;
        header.strip_suffix('-')?.parse().ok()
    }

    pub(crate) fn path(&self) -> &str {
        self.line.split(' ').nth(1).unwrap()
    }
}

/// What goes back, byte for byte; then the connection is closed.
pub(crate) type Answer = Vec<u8>;

pub(crate) struct Server {
    pub(crate) address: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// Answers every request by `handler`, which is given its number from 0.
    pub(crate) fn start(handler: impl Fn(usize, &Request) -> Answer + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        // Ends with the process, as tests do.
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let Some(mut request) = read(&stream) else { continue };
                // A proxy is asked for a tunnel, through which the request then comes.
                if request.line.starts_with("CONNECT ") {
                    seen.lock().unwrap().push(request);
                    let _ = (&stream).write_all(b"HTTP/1.1 200 Connection established\r\n\r\n");
                    let Some(tunnelled) = read(&stream) else { continue };
                    request = tunnelled;
                }
                let number = {
                    let mut seen = seen.lock().unwrap();
                    seen.push(request.clone());
                    seen.len() - 1
                };
                let _ = (&stream).write_all(&handler(number, &request));
            }
        });
        Self { address, requests }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

fn read(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines();
    let line = lines.next()?.ok()?;
    let headers = lines.map_while(Result::ok).take_while(|line| !line.is_empty());
    Some(Request { line, headers: headers.map(|h| h.to_ascii_lowercase()).collect() })
}

/// An answer with these headers and this body.
pub(crate) fn answer(status: &str, headers: &[String], body: &[u8]) -> Answer {
    let mut answer = format!("HTTP/1.1 {status}\r\nConnection: close\r\n").into_bytes();
    for header in headers {
        answer.extend_from_slice(format!("{header}\r\n").as_bytes());
    }
    answer.extend_from_slice(b"\r\n");
    answer.extend_from_slice(body);
    answer
}

/// The whole content, as a server without ranges sends it.
pub(crate) fn whole(content: &[u8]) -> Answer {
    answer("200 OK", &[format!("Content-Length: {}", content.len())], content)
}

/// What was asked for, whole or from a byte on.
pub(crate) fn ranged(request: &Request, content: &[u8]) -> Answer {
    match request.range() {
        None => whole(content),
        Some(from) if from >= content.len() => {
            let range = format!("Content-Range: bytes */{}", content.len());
            answer("416 Range Not Satisfiable", &[range, "Content-Length: 0".into()], b"")
        }
        Some(from) => {
            let range = format!("Content-Range: bytes {from}-{}/{}", content.len() - 1, content.len());
            let length = format!("Content-Length: {}", content.len() - from);
            answer("206 Partial Content", &[range, length], &content[from..])
        }
    }
}

/// The answer without its last bytes: the connection is cut.
pub(crate) fn cut(mut answer: Answer, last: usize) -> Answer {
    answer.truncate(answer.len() - last);
    answer
}
