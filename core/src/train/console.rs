//! What a run shows while it goes on: text on stderr, or JSON records on stdout.

use crate::progress::{Format, clock, new_bar, short, style};
use crate::run_folder::{Metric, Record};
use indicatif::{HumanBytes, ProgressBar};
use std::io::{IsTerminal, Write};
use std::time::Instant;

/// Shows a run's records: a bar on a terminal, one line per record elsewhere, JSON lines on stdout where asked for.
#[derive(Debug)]
pub struct Console {
    format: Format,
    quiet: bool,
    bar: Option<ProgressBar>,
    unit: &'static str,
    steps: u64,
    first_step: u64,
    started: Instant,
}

impl Console {
    /// Shows records in this format; `quiet` leaves out the progress on stderr.
    pub fn new(format: Format, quiet: bool) -> Self {
        Self { format, quiet, bar: None, unit: "items", steps: 0, first_step: 0, started: Instant::now() }
    }

    /// Shows nothing.
    pub fn silent() -> Self {
        Self::new(Format::Human, true)
    }

    /// Prints a line to stderr, unless quiet.
    pub fn note(&self, line: &str) {
        if self.quiet {
            return;
        }
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{line}")),
            None => eprintln!("{line}"),
        }
    }

    pub(super) fn start(&mut self, step: u64, steps: u64, unit: &'static str) {
        (self.first_step, self.steps, self.unit, self.started) = (step, steps, unit, Instant::now());
        if !self.quiet && std::io::stderr().is_terminal() {
            let bar = new_bar(Some(steps), false);
            bar.set_style(style("step {pos}/{len} {bar:24} {msg}"));
            bar.set_position(step);
            self.bar = Some(bar);
        }
        if step > 0 {
            self.note(&format!("resuming at step {step}"));
        }
    }

    pub(super) fn step(&self, step: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(step);
        }
    }

    pub(super) fn train(&mut self, record: &Record) {
        self.json(record);
        let Record::Train { step, loss, lr, rate, peak_memory, .. } = record else { return };
        let per_step =
            self.started.elapsed().as_secs_f64() / step.saturating_sub(self.first_step).max(1) as f64;
        let eta = clock(per_step * self.steps.saturating_sub(*step) as f64);
        let memory = peak_memory.map_or_else(String::new, |bytes| format!("  {}", HumanBytes(bytes)));
        let rate = short(*rate);
        let figures = format!("loss {loss:.4}  lr {lr:.1e}  {rate} {}/s{memory}  eta {eta}", self.unit);
        match &self.bar {
            Some(bar) => bar.set_message(figures),
            None => self.note(&format!("step {step}/{}  {figures}", self.steps)),
        }
    }

    pub(super) fn valid(&mut self, record: &Record, metrics: &[Metric], best: bool) {
        self.json(record);
        let mut line = String::from("valid");
        for metric in metrics {
            line += &format!("  {} {} {:.4}", metric.name, metric.goal.arrow(), metric.value);
        }
        self.note(&(line + if best { "  (best, saved)" } else { "" }));
    }

    pub(super) fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    /// A reader that went away (`| head`) must not cost the run: from then on stdout stays silent.
    fn json(&mut self, record: &Record) {
        if self.format != Format::Json {
            return;
        }
        let line = serde_json::to_string(record).unwrap_or_default();
        let mut stdout = std::io::stdout().lock();
        if writeln!(stdout, "{line}").and_then(|()| stdout.flush()).is_err() {
            self.format = Format::Human;
        }
    }
}
