//! Between text and tokens: `tokenizer.json` of Hugging Face, and a tokenizer of plain bytes in that format.

use crate::files::atomic_write;
use crate::{Error, Result};
use serde_json::json;
use std::path::Path;

/// The file with the tokenizer, beside a checkpoint's `config.json`.
pub const TOKENIZER: &str = "tokenizer.json";
/// What undecodable bytes read as.
const REPLACEMENT: char = '\u{fffd}';

/// Turns text into tokens and back.
#[derive(Clone, Debug)]
pub struct Tokenizer(tokenizers::Tokenizer);

impl Tokenizer {
    /// Reads the `tokenizer.json` of a checkpoint folder.
    pub fn load(dir: impl AsRef<Path>) -> Result<Self> {
        let path = dir.as_ref().join(TOKENIZER);
        let bytes = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
        let read = tokenizers::Tokenizer::from_bytes(&bytes);
        Ok(Self(read.map_err(|e| Error::checkpoint(&path, format!("not a tokenizer: {e}")))?))
    }

    /// Every byte is the token of its value: no vocabulary to train, no text that does not fit.
    pub fn bytes() -> Self {
        let vocabulary: serde_json::Map<_, _> =
            (0..=255u8).map(|byte| (byte_character(byte).to_string(), json!(byte))).collect();
        let level = json!({
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false
        });
        let json = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": level, "post_processor": null, "decoder": level,
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                "vocab": vocabulary, "merges": []},
        });
        let tokenizer = tokenizers::Tokenizer::from_bytes(json.to_string().as_bytes());
        Self(tokenizer.expect("a byte-level vocabulary of all bytes is valid"))
    }

    /// Writes `tokenizer.json` into a folder, whole or not at all.
    pub fn save(&self, dir: impl AsRef<Path>) -> Result<()> {
        let path = dir.as_ref().join(TOKENIZER);
        let text = self.0.to_string(true).map_err(Error::other)?;
        atomic_write(&path, |w| w.write_all(text.as_bytes()).map_err(|e| Error::io(&path, e)))
    }

    /// Number of tokens, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.0.get_vocab_size(true)
    }

    /// The token of that very text, for example `<|endoftext|>`.
    pub fn token(&self, text: &str) -> Option<u32> {
        self.0.token_to_id(text)
    }

    /// Text to tokens, with the special tokens that the tokenizer adds.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.0.encode_fast(text, true).map_err(Error::other)?.get_ids().to_vec())
    }

    /// A long text to tokens, line by line, so that time and memory grow with its length only; without special tokens.
    pub fn encode_lines(&self, text: &str) -> Result<Vec<u32>> {
        let mut tokens = Vec::new();
        for line in text.split_inclusive('\n') {
            tokens.extend_from_slice(self.0.encode_fast(line, false).map_err(Error::other)?.get_ids());
        }
        Ok(tokens)
    }

    /// Tokens to text, without special tokens.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        self.0.decode(tokens, true).map_err(Error::other)
    }

    /// A reader of tokens as they come; text ends, without being part of what is shown, before the first of `stops`.
    pub fn stream(&self, stops: &[String]) -> TextStream<'_> {
        let stops = stops.iter().filter(|stop| !stop.is_empty()).cloned().collect();
        TextStream {
            tokenizer: self,
            stops,
            tokens: Vec::new(),
            shown: 0,
            held: String::new(),
            stopped: false,
        }
    }
}

/// Text out of tokens as they come. Holds back what may be the first bytes of a character or of a stop text.
#[derive(Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    stops: Vec<String>,
    /// The last tokens: those whose text is not final yet, and some before them, because a decoder looks at neighbours.
    tokens: Vec<u32>,
    /// Bytes of the text of `tokens` that are already in `held` or out.
    shown: usize,
    /// Text that may begin a stop text.
    held: String,
    stopped: bool,
}

impl TextStream<'_> {
    /// Tokens after which the older half of what was decoded is forgotten.
    const WINDOW: usize = 32;

    /// The text that is certain after one more token; empty if none is, and after the end.
    pub fn push(&mut self, token: u32) -> Result<String> {
        if self.stopped {
            return Ok(String::new());
        }
        self.tokens.push(token);
        let text = self.tokenizer.decode(&self.tokens)?;
        // A character that misses bytes reads as replacements at the end; real ones are shown once text follows.
        let certain = text.trim_end_matches(REPLACEMENT).len();
        self.take(&text, certain);
        if certain == text.len() && self.tokens.len() >= Self::WINDOW {
            self.tokens.drain(..Self::WINDOW / 2);
            self.shown = self.tokenizer.decode(&self.tokens)?.len();
        }
        Ok(self.release(false))
    }

    /// What was held back.
    pub fn finish(&mut self) -> Result<String> {
        if self.stopped {
            return Ok(String::new());
        }
        let text = self.tokenizer.decode(&self.tokens)?;
        self.take(&text, text.len());
        Ok(self.release(true))
    }

    /// Whether a stop text was read.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    fn take(&mut self, text: &str, certain: usize) {
        if certain > self.shown
            && let Some(new) = text.get(self.shown..certain)
        {
            self.held += new;
            self.shown = certain;
        }
    }

    fn release(&mut self, all: bool) -> String {
        let first = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        let end = match first {
            Some(at) => {
                self.stopped = true;
                at
            }
            None if all => self.held.len(),
            None => {
                let may_begin_stop = |&at: &usize| {
                    let tail = &self.held[at..];
                    self.stops.iter().any(|stop| stop.starts_with(tail))
                };
                let starts = self.held.char_indices().map(|(at, _)| at);
                starts.clone().find(may_begin_stop).unwrap_or(self.held.len())
            }
        };
        let rest = self.held.split_off(end);
        std::mem::replace(&mut self.held, rest)
    }
}

/// How a byte reads in the vocabulary of a byte-level tokenizer: printable bytes as themselves, the others, in order, as
/// the characters from U+0100 on.
fn byte_character(byte: u8) -> char {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    match printable(byte) {
        true => char::from(byte),
        false => {
            let before = (0..byte).filter(|&b| !printable(b)).count() as u32;
            char::from_u32(256 + before).expect("the characters from U+0100 on exist")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_their_own_tokens_and_come_back() {
        let tokenizer = Tokenizer::bytes();
        assert_eq!(tokenizer.vocab_size(), 256);
        for text in ["", " a\r\n\tb ", "Grüße, 世界 🦀", "\0\u{7f}"] {
            let tokens = tokenizer.encode(text).unwrap();
            assert_eq!(tokens, text.bytes().map(u32::from).collect::<Vec<_>>());
            assert_eq!(tokenizer.decode(&tokens).unwrap(), text);
        }
        let folder = tempfile::tempdir().unwrap();
        tokenizer.save(folder.path()).unwrap();
        let again = Tokenizer::load(folder.path()).unwrap();
        assert_eq!(again.encode("ü").unwrap(), [0xc3, 0xbc]);
        std::fs::write(folder.path().join(TOKENIZER), "{").unwrap();
        let error = Tokenizer::load(folder.path()).unwrap_err().to_string();
        assert!(error.contains("tokenizer.json: not a tokenizer"), "{error}");
    }

    /// What comes out token by token, and at the end.
    fn stream(text: &[u8], stops: &[&str]) -> (Vec<String>, String, bool) {
        let tokenizer = Tokenizer::bytes();
        let mut stream = tokenizer.stream(&stops.iter().map(|s| s.to_string()).collect::<Vec<_>>());
        let parts = text.iter().map(|&b| stream.push(b.into()).unwrap()).collect();
        (parts, stream.finish().unwrap(), stream.stopped())
    }

    #[test]
    fn a_character_is_shown_once_it_is_whole() {
        let (parts, rest, _) = stream("aü🦀b".as_bytes(), &[]);
        assert_eq!(parts, ["a", "", "ü", "", "", "", "🦀", "b"]);
        assert_eq!(rest, "");
        let (parts, rest, _) = stream(b"a\xc3", &[]);
        assert_eq!((parts[1].as_str(), rest.as_str()), ("", "\u{fffd}"));
        let (parts, _, _) = stream(b"\xffa", &[]);
        assert_eq!(parts, ["", "\u{fffd}a"], "a byte that begins no character is shown when text follows");
    }

    #[test]
    fn a_stop_text_ends_the_text_before_it() {
        let (parts, rest, stopped) = stream(b"one\ntwo\n\nthree", &["\n\n"]);
        assert_eq!(parts.concat() + &rest, "one\ntwo");
        assert!(stopped);
        assert_eq!(parts[3], "", "a newline is held back");
        assert_eq!(parts[4], "\nt", "until something else follows");
        let (parts, rest, stopped) = stream(b"one\n", &["\n\n"]);
        assert_eq!((parts.concat(), rest.as_str(), stopped), ("one".to_string(), "\n", false));
    }

    #[test]
    fn long_texts_are_whole() {
        let text: String = (0..200).map(|i| format!("{i} ü ")).collect();
        let (parts, rest, _) = stream(text.as_bytes(), &["never"]);
        assert_eq!(parts.concat() + &rest, text);
    }
}
