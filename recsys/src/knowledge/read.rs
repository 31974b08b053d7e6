//! Answer logs in the layout of DKVMN's data sets: three lines for a student.
//!
//! ```text
//! 4                 number of answers
//! 12,12,7,30        the skill of each question
//! 0,1,1,0           1 for a right answer, 0 for a wrong one
//! ```

use super::Student;
use crate::error::{Error, Result};
use crate::{Ids, ItemMap};
use std::path::{Path, PathBuf};

/// Answers as they were read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnswerLog {
    /// The skill of every answer, student after student.
    skill: Ids,
    /// Whether it was right.
    right: Vec<bool>,
    /// Where each student's answers end.
    ends: Vec<usize>,
}

/// Reads files, one after the other.
///
/// # Errors
/// A file that cannot be read or is not laid out so, with its line; files without any student.
pub fn read_answers(paths: &[PathBuf]) -> Result<AnswerLog> {
    let (mut skill, mut right, mut ends) = (Vec::new(), Vec::new(), Vec::new());
    for path in paths {
        let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
        let text = String::from_utf8(bytes).map_err(|e| Error::file(path, format!("not text: {e}")))?;
        let mut lines =
            text.trim_start_matches('\u{feff}').lines().zip(1..).filter(|(l, _)| !l.trim().is_empty());
        while let Some(first) = lines.next() {
            let (second, third) = (lines.next(), lines.next());
            read_student(path, first, second, third, &mut skill, &mut right)?;
            ends.push(right.len());
        }
    }
    let log = AnswerLog::new(Ids::from_text(skill), right, ends);
    match log.students() {
        0 => Err(Error::Empty("the files hold no student".into())),
        _ => Ok(log),
    }
}

type Line<'a> = (&'a str, usize);

fn read_student(
    path: &Path,
    (count, line): Line<'_>,
    skills: Option<Line<'_>>,
    answers: Option<Line<'_>>,
    skill: &mut Vec<String>,
    right: &mut Vec<bool>,
) -> Result<()> {
    let bad = |line: usize, problem: String| Error::Line { path: path.to_owned(), line, problem };
    // Some files end their lines with a comma.
    let values = |text: &str| -> Vec<String> {
        text.trim().trim_end_matches(',').split(',').map(|value| value.trim().to_string()).collect()
    };
    let count = values(count).concat();
    let count: usize = count.parse().map_err(|_| {
        bad(line, format!("{count:?} is not a number of answers, with which a student begins"))
    })?;
    if count == 0 {
        return Err(bad(line, "a student without answers".into()));
    }
    let lines = skills.zip(answers);
    let ((skills, at_skills), (answers, at_answers)) = lines
        .ok_or_else(|| bad(line, "the last student is cut short: skills, then answers must follow".into()))?;
    let (skills, answers) = (values(skills), values(answers));
    for (found, at, what) in [(&skills, at_skills, "skills"), (&answers, at_answers, "answers")] {
        if found.len() != count {
            return Err(bad(at, format!("{} {what}, line {line} says {count}", found.len())));
        }
    }
    if skills.iter().any(String::is_empty) {
        return Err(bad(at_skills, "an empty skill".into()));
    }
    for answer in &answers {
        right.push(match answer.as_str() {
            "0" => false,
            "1" => true,
            other => return Err(bad(at_answers, format!("answer {other:?}, expected 0 or 1"))),
        });
    }
    skill.extend(skills);
    Ok(())
}

impl AnswerLog {
    /// From every answer's skill and whether it was right, and where each student's answers end.
    pub fn new(skill: Ids, right: Vec<bool>, ends: Vec<usize>) -> Self {
        debug_assert!(skill.len() == right.len() && ends.last().is_none_or(|&end| end == right.len()));
        Self { skill, right, ends }
    }

    /// Number of students.
    pub fn students(&self) -> usize {
        self.ends.len()
    }

    /// Number of answers.
    pub fn answers(&self) -> usize {
        self.right.len()
    }

    /// The skills, in the order of their ids.
    pub fn skills(&self) -> ItemMap {
        let (skills, _) = self.skill.encode();
        let mut order: Vec<usize> = (0..skills.len()).collect();
        order.sort_by_key(|&place| skills.get(place));
        ItemMap::new(skills.select(order.into_iter()))
    }

    /// The students, with the numbers that `skills` gives.
    pub fn numbered(&self, skills: &ItemMap) -> Vec<Student> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        let number = |place: usize| skills.item(self.skill.get(place)).unwrap_or(0);
        let student = |(start, &end): (usize, &usize)| Student {
            skills: (start..end).map(number).collect(),
            right: self.right[start..end].to_vec(),
        };
        starts.zip(&self.ends).map(student).collect()
    }

    /// Two logs: of the students at `places`, and of the others.
    pub fn split(&self, places: &[usize]) -> (Self, Self) {
        let chosen: std::collections::HashSet<usize> = places.iter().copied().collect();
        let part = |inside: bool| {
            let (mut answers, mut ends) = (Vec::new(), Vec::new());
            for student in (0..self.students()).filter(|student| chosen.contains(student) == inside) {
                let start = if student == 0 { 0 } else { self.ends[student - 1] };
                answers.extend(start..self.ends[student]);
                ends.push(answers.len());
            }
            let right = answers.iter().map(|&answer| self.right[answer]).collect();
            Self::new(self.skill.select(answers.into_iter()), right, ends)
        };
        (part(true), part(false))
    }
}
