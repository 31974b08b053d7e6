//! Generated answers with known structure, for a first run without any data.

use super::AnswerLog;
use crate::Ids;
use mamba_core::Rng;

/// Students with different talents practise skills of different difficulty, in runs of one skill, and get better at a skill
/// with every question of it. Only a model that remembers each skill's practice and the student's luck so far comes near to
/// the probabilities that the answers were drawn with.
pub fn sample(students: usize, seed: u64) -> AnswerLog {
    const SKILLS: usize = 20;
    let (mut skill, mut right, mut ends) = (Vec::new(), Vec::new(), Vec::new());
    let mut rng = Rng::stream(seed, "skills", 0);
    let difficulty: Vec<f64> = (0..SKILLS).map(|_| 4.0 * rng.uniform() - 1.0).collect();
    for student in 0..students {
        let mut rng = Rng::stream(seed, "student", student as u64);
        let talent = 4.0 * rng.uniform() - 2.0;
        let mut practice = [0.0; SKILLS];
        for _ in 0..8 {
            let chosen = rng.below(SKILLS);
            for _ in 0..2 + rng.below(6) {
                let log_odds = talent + 0.4 * practice[chosen] - difficulty[chosen];
                skill.push(chosen as i64);
                right.push(rng.uniform() < 1.0 / (1.0 + (-log_odds).exp()));
                practice[chosen] += 1.0;
            }
        }
        ends.push(right.len());
    }
    AnswerLog::new(Ids::Int(skill), right, ends)
}
