//! Taking a data set from a copy that one has.

use std::collections::BTreeSet;
use std::path::Path;

use super::archive::visit;
use super::table::Form;
use super::{DataSet, Home, histories};
use crate::hash::sha256;
use crate::{Error, Result};

/// Copies a data set into the cache from `path`: a file, a folder, or a zip, tar, tar.gz or gz file. Files are known by
/// their content, whatever their names and places. Where the set can be made from an original in another form, that
/// is taken too.
///
/// Each file that matches is kept, even if others are missing, which is an error.
pub fn import(set: &DataSet, path: &Path, home: &Home) -> Result<()> {
    let mut missing: BTreeSet<usize> = (0..set.files.len()).collect();
    let mut reason = String::new();

    let sizes: BTreeSet<u64> = set.files.iter().map(|file| file.bytes).collect();
    let by_size = set.files.iter().all(|file| file.digest.covers_all());
    let original = set.convert.as_ref().map(|convert| convert.bytes);
    let wants = |bytes: Option<u64>| match bytes {
        Some(bytes) => !by_size || sizes.contains(&bytes) || original == Some(bytes),
        None => true,
    };
    let most = sizes.last().copied().max(original).unwrap_or(0);
    // Headers and line ends are free where only the content counts.
    let most = if by_size { most } else { 2 * most + (1 << 16) };

    visit(path, most, &wants, &mut |name, content| {
        let matching: Vec<usize> = missing
            .iter()
            .copied()
            .filter(|&index| {
                !set.files[index].digest.covers_all() || set.files[index].bytes == content.len() as u64
            })
            .filter(|&index| set.files[index].digest.matches(&content))
            .collect();
        for index in &matching {
            home.place(set, &set.files[*index], &content)?;
            missing.remove(index);
        }
        let base = |path: &str| path.rsplit(['/', '\\', ':']).next().map(str::to_owned);
        if let Some(convert) = set.convert.as_ref().filter(|_| matching.is_empty()) {
            if sha256(&content) == convert.sha256 {
                let made = match convert.how {
                    Form::Movielens => histories(name, &content)?,
                };
                for (index, file) in set.files.iter().enumerate().filter(|(_, file)| file.path == convert.to)
                {
                    file.digest.check(&format!("what is made from {name}"), made.as_bytes())?;
                    home.place(set, file, made.as_bytes())?;
                    missing.remove(&index);
                }
            } else if base(name).as_ref() == Some(&convert.from) {
                reason = format!(" ({name} has SHA-256 {}, expected {})", sha256(&content), convert.sha256);
            }
        }
        if matching.is_empty() {
            let name = name.strip_suffix(".gz").unwrap_or(name);
            let like = missing.iter().find(|&&index| base(&set.files[index].path) == base(name));
            if let Some(Err(error)) = like.map(|&index| set.files[index].digest.check(name, &content)) {
                reason = format!(" ({error})");
            }
        }
        Ok(())
    })?;

    if missing.is_empty() {
        return Ok(());
    }
    let mut names: Vec<&str> = missing.iter().take(3).map(|&index| set.files[index].path.as_str()).collect();
    if missing.len() > 3 {
        names.push("…");
    }
    let (found, of) = (set.files.len() - missing.len(), set.files.len());
    Err(Error::Import {
        name: set.name.clone(),
        path: path.to_owned(),
        found: format!("{found} of the {of} files (missing: {}){reason}", names.join(", ")),
        import: set.import.clone(),
    })
}
