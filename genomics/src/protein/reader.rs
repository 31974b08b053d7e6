//! Proteins from FASTA and A3M files, plain, gzip or bgzip.

use std::path::Path;

use crate::error::{Error, Result, quote_byte};
use crate::fasta::Input;
use crate::protein::alphabet::Alphabet;

/// Longer lines are not those of a protein file: the longest protein known has 35,991 residues.
const MAX_LINE_LEN: usize = 1 << 24;

/// A protein.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Protein {
    /// The first word after `>`.
    pub name: String,
    /// A token for each residue and gap.
    pub tokens: Vec<u32>,
    /// Which of them are insertions against the query of an A3M file: lower-case letters, and `.`.
    pub inserted: Vec<bool>,
}

impl Protein {
    /// A protein of residues alone.
    pub fn new(name: impl Into<String>, residues: Vec<u32>) -> Self {
        Self { name: name.into(), inserted: vec![false; residues.len()], tokens: residues }
    }

    /// The residues, without gaps.
    pub fn residues(&self, alphabet: Alphabet) -> Vec<u32> {
        self.tokens.iter().copied().filter(|&token| token != alphabet.gap()).collect()
    }

    /// The columns of the alignment that an A3M file is: all but insertions.
    pub fn columns(&self) -> Vec<u32> {
        self.tokens
            .iter()
            .zip(&self.inserted)
            .filter(|(_, inserted)| !**inserted)
            .map(|(&token, _)| token)
            .collect()
    }
}

/// Reads proteins one at a time: an iterator over `Result<Protein>` that ends after an error.
pub struct ProteinReader {
    input: Input,
    alphabet: Alphabet,
    line: u64,
    header: Option<(String, u64)>,
    started: bool,
    done: bool,
}

/// All proteins of some files.
pub fn read_all(paths: &[impl AsRef<Path>], alphabet: Alphabet) -> Result<Vec<Protein>> {
    let mut all = Vec::new();
    for path in paths {
        for protein in ProteinReader::open(path, alphabet)? {
            all.push(protein?);
        }
    }
    Ok(all)
}

impl ProteinReader {
    /// Opens a file, or standard input for `-`.
    pub fn open(path: impl AsRef<Path>, alphabet: Alphabet) -> Result<Self> {
        Ok(Self::new(Input::open(path.as_ref())?, alphabet))
    }

    /// Reads from any stream; `name` stands for it in messages.
    pub fn from_reader(
        name: &str,
        reader: impl std::io::Read + Send + 'static,
        alphabet: Alphabet,
    ) -> Result<Self> {
        Ok(Self::new(Input::new(name.into(), Box::new(reader), None)?, alphabet))
    }

    fn new(input: Input, alphabet: Alphabet) -> Self {
        Self { input, alphabet, line: 0, header: None, started: false, done: false }
    }

    /// The next line without its end; none at the end of the file.
    fn read_line(&mut self) -> Result<Option<Vec<u8>>> {
        let mut text = Vec::new();
        let mut any = false;
        self.line += 1;
        loop {
            let buf = self.input.fill_buf()?;
            if buf.is_empty() {
                return Ok(any.then_some(text));
            }
            any = true;
            let end = buf.iter().position(|&byte| byte == b'\n');
            text.extend_from_slice(&buf[..end.unwrap_or(buf.len())]);
            let used = end.map_or(buf.len(), |end| end + 1);
            self.input.consume(used);
            if text.len() > MAX_LINE_LEN {
                return Err(self.problem(format!("line is longer than {MAX_LINE_LEN} bytes")));
            }
            if end.is_some() {
                return Ok(Some(text));
            }
        }
    }

    fn problem(&self, reason: impl Into<String>) -> Error {
        Error::Protein { path: self.input.path.clone(), line: self.line, reason: reason.into() }
    }

    fn name(&self, header: &[u8]) -> Result<String> {
        let text = std::str::from_utf8(header).map_err(|_| self.problem("record name is not UTF-8"))?;
        // Some databases write a space after '>'.
        match text.split_whitespace().next() {
            Some(name) => Ok(name.to_owned()),
            None => Err(Error::EmptyName { path: self.input.path.clone(), line: self.line }),
        }
    }

    /// The first header, after blank lines and the comment lines of some A3M files.
    fn start(&mut self) -> Result<()> {
        self.started = true;
        while let Some(text) = self.read_line()? {
            let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&text);
            match text.trim_ascii() {
                [] | [b'#', ..] => {}
                [b'>', rest @ ..] => {
                    self.header = Some((self.name(rest)?, self.line));
                    return Ok(());
                }
                [first, ..] => {
                    let (path, line) = (self.input.path.clone(), self.line);
                    return Err(Error::NotFasta { path, line, found: quote_byte(*first) });
                }
            }
        }
        Err(Error::EmptyFile { path: self.input.path.clone() })
    }

    fn next_protein(&mut self) -> Result<Option<Protein>> {
        if !self.started {
            self.start()?;
        }
        let Some((name, header_line)) = self.header.take() else { return Ok(None) };
        let mut protein = Protein { name, tokens: Vec::new(), inserted: Vec::new() };
        let mut stopped = false;
        while let Some(text) = self.read_line()? {
            if let [b'>', rest @ ..] = text.as_slice() {
                self.header = Some((self.name(rest)?, self.line));
                break;
            }
            self.add(&text, &mut protein, &mut stopped)?;
        }
        if protein.tokens.iter().all(|&token| token == self.alphabet.gap()) {
            let (path, record) = (self.input.path.clone(), protein.name);
            return Err(Error::EmptyRecord { path, line: header_line, record });
        }
        Ok(Some(protein))
    }

    fn add(&self, text: &[u8], protein: &mut Protein, stopped: &mut bool) -> Result<()> {
        let mut rest = text;
        while let Some((&byte, after)) = rest.split_first() {
            rest = after;
            if byte.is_ascii_whitespace() {
                continue;
            }
            if *stopped {
                return Err(self.problem(format!("record {:?} goes on after '*'", protein.name)));
            }
            let token = match byte {
                b'*' => {
                    *stopped = true;
                    continue;
                }
                b'<' => {
                    let end = rest.iter().position(|&byte| byte == b'>');
                    let name = end.and_then(|end| std::str::from_utf8(&rest[..end]).ok());
                    rest = &rest[end.map_or(0, |end| end + 1)..];
                    name.and_then(|name| self.alphabet.modified(name)).ok_or_else(|| {
                        let name = name.unwrap_or("?");
                        self.problem(format!("record {:?}: <{name}> is no token of the model", protein.name))
                    })?
                }
                byte => self.alphabet.token(byte).ok_or_else(|| {
                    let column = text.len() - rest.len();
                    self.problem(format!(
                        "record {:?}: invalid character {} at column {column}: expected an amino acid",
                        protein.name,
                        quote_byte(byte)
                    ))
                })?,
            };
            protein.tokens.push(token);
            protein.inserted.push(byte.is_ascii_lowercase() || byte == b'.');
        }
        Ok(())
    }
}

impl Iterator for ProteinReader {
    type Item = Result<Protein>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let protein = self.next_protein();
        self.done = !matches!(protein, Ok(Some(_)));
        protein.transpose()
    }
}
