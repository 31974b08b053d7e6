//! What a model must beat: how often a skill is answered rightly, by all students, and by this one so far.

use super::Student;

/// The share of right answers of each skill.
#[derive(Clone, Debug)]
pub struct SkillMean {
    /// Right answers and answers of each skill; place 0 is all skills together.
    counts: Vec<(f32, f32)>,
}

impl SkillMean {
    /// Of training answers.
    pub fn new(students: &[Student], n_skills: usize) -> Self {
        let mut counts = vec![(0.0, 0.0); n_skills];
        for (&skill, &right) in students.iter().flat_map(|s| s.skills.iter().zip(&s.right)) {
            for place in [0, skill as usize] {
                counts[place].0 += f32::from(u8::from(right));
                counts[place].1 += 1.0;
            }
        }
        Self { counts }
    }

    /// The share among all students, drawn towards that of all skills where answers are few.
    fn mean(&self, skill: u32) -> f32 {
        let ((all_right, all), (right, n)) = (self.counts[0], self.counts[skill as usize]);
        (right + 5.0 * (all_right + 1.0) / (all + 2.0)) / (n + 5.0)
    }

    /// A probability for every answer, of the skill alone.
    pub fn predict(&self, student: &Student) -> Vec<f32> {
        student.skills.iter().map(|&skill| self.mean(skill)).collect()
    }

    /// The same, moved by the student's own answers to this skill so far.
    pub fn predict_with_own_answers(&self, student: &Student) -> Vec<f32> {
        let mut own = vec![(0.0f32, 0.0f32); self.counts.len()];
        let answers = student.skills.iter().zip(&student.right);
        answers
            .map(|(&skill, &right)| {
                let (own_right, n) = &mut own[skill as usize];
                let p = (*own_right + 2.0 * self.mean(skill)) / (*n + 2.0);
                *own_right += f32::from(u8::from(right));
                *n += 1.0;
                p
            })
            .collect()
    }
}
