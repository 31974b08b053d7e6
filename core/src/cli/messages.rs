//! How a binary ends: message, hint and exit code.

use crate::Error;
use std::fmt;
use std::io::IsTerminal;
use std::process::ExitCode;

/// Exit code of a usage or configuration error.
pub const USAGE: u8 = 2;
/// Exit code after Ctrl-C or SIGTERM.
pub const INTERRUPTED: u8 = 130;

/// Runs a program and turns its result into an exit code: the program's own; 0 when the reader of stdout went away;
/// 2 for [`Error::Config`]; 1 for every other error, which is printed with its causes and its hint.
pub fn run_main(program: impl FnOnce() -> anyhow::Result<ExitCode>) -> ExitCode {
    match program() {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let color =
                std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
            eprintln!("{}", describe(&error, color));
            let config = error.chain().any(|e| matches!(e.downcast_ref::<Error>(), Some(Error::Config(_))));
            ExitCode::from(if config { USAGE } else { 1 })
        }
    }
}

/// An error together with what to try about it.
#[derive(Debug)]
pub struct Hinted {
    error: anyhow::Error,
    hint: String,
}

impl fmt::Display for Hinted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for Hinted {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(self.error.as_ref())
    }
}

/// Adds a hint to an error.
pub trait HintExt<T> {
    /// Adds a `hint: …` line below the error: the exact flag or command to try.
    fn hint(self, hint: impl fmt::Display) -> anyhow::Result<T>;
}

impl<T, E: Into<anyhow::Error>> HintExt<T> for Result<T, E> {
    fn hint(self, hint: impl fmt::Display) -> anyhow::Result<T> {
        self.map_err(|error| Hinted { error: error.into(), hint: hint.to_string() }.into())
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let broken = |e: &std::io::Error| e.kind() == std::io::ErrorKind::BrokenPipe;
    error.chain().any(|e| e.downcast_ref::<std::io::Error>().is_some_and(broken))
}

/// `error: what: cause: its cause`, then the hints.
fn describe(error: &anyhow::Error, color: bool) -> String {
    let label = |text: &str, code: &str| {
        if color { format!("\x1b[1;{code}m{text}:\x1b[0m") } else { format!("{text}:") }
    };
    let mut message = label("error", "31");
    let mut hints = String::new();
    let mut previous = String::new();
    for (depth, cause) in error.chain().enumerate() {
        if let Some(Hinted { hint, .. }) = cause.downcast_ref() {
            hints += &format!("\n{} {hint}", label("hint", "36"));
        }
        let text = cause.to_string();
        // a wrapper that shows its source says nothing new
        if depth == 0 || text != previous {
            message += if depth == 0 { " " } else { ": " };
            message += &text;
        }
        let full = text.contains("CUDA_ERROR_OUT_OF_MEMORY") || text.contains("out of GPU memory");
        if full && !hints.contains("a smaller batch") {
            hints += &format!(
                "\n{} a smaller batch or shorter sequences need less; nvidia-smi shows who uses the GPU's memory",
                label("hint", "36")
            );
        }
        previous = text;
    }
    message + &hints
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    fn not_found() -> Error {
        Error::io("runs/a/config.json", std::io::Error::other("no such file"))
    }

    #[test]
    fn causes_and_hints_are_shown_once() {
        let error = Err::<(), _>(not_found()).hint("train first").context("cannot evaluate").unwrap_err();
        let expected = "error: cannot evaluate: runs/a/config.json: no such file\nhint: train first";
        assert_eq!(describe(&error, false), expected);
        assert!(describe(&error, true).starts_with("\x1b[1;31merror:\x1b[0m cannot"));
    }

    #[test]
    fn a_full_gpu_comes_with_a_hint() {
        let error = anyhow::anyhow!("out of GPU memory: asked for 8.0 MiB, 1.0 of 9.0 MiB are free");
        assert!(describe(&error.context("step 3"), false).contains("\nhint: a smaller batch"));
    }

    #[test]
    fn exit_codes_follow_the_kind_of_error() {
        let code = |error: anyhow::Error| format!("{:?}", run_main(|| Err(error)));
        let expect = |code: u8| format!("{:?}", ExitCode::from(code));
        assert_eq!(code(not_found().into()), expect(1));
        assert_eq!(code(anyhow::Error::new(Error::Config("steps is 0".into())).context("train")), expect(2));
        let hinted = Err::<(), _>(Error::Config("bad".into())).hint("try --steps 1").unwrap_err();
        assert_eq!(code(hinted), expect(2));
        let pipe = std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        assert_eq!(code(Error::io("stdout", pipe).into()), expect(0));
        assert_eq!(format!("{:?}", run_main(|| Ok(ExitCode::from(INTERRUPTED)))), expect(130));
    }
}
