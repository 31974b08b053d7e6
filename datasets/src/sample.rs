//! Small public data sets compiled into the crate, so that a first run needs no network.
//!
//! ```
//! let lambda = mamba_datasets::sample("lambda")?;
//! assert!(lambda.bytes().starts_with(b">NC_001416.1"));
//! # Ok::<(), mamba_datasets::Error>(())
//! ```

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use crate::{AtomicFile, Error, Result};

/// One bundled data set; `samples/README.md` in the crate's source gives provenance and checksums.
#[derive(Debug)]
#[non_exhaustive]
pub struct Sample {
    /// Short name, as on a command line.
    pub name: &'static str,
    /// What it is, in one line.
    pub title: &'static str,
    /// Under what terms it may be used.
    pub licence: &'static str,
    /// Where it comes from.
    pub source: &'static str,
    /// Accession in the public archives.
    pub accession: &'static str,
    /// Name of the file that [`Sample::write_to`] writes.
    pub file_name: &'static str,
    compressed: &'static [u8],
}

const SAMPLES: &[Sample] = &[
    Sample {
        name: "lambda",
        title: "Enterobacteria phage lambda, complete genome, 48,502 bp",
        licence: "public sequence record (INSDC): free to use and redistribute",
        source: "NCBI Nucleotide, NC_001416.1 (derived from GenBank J02459.1)",
        accession: "NC_001416.1",
        file_name: "lambda.fa",
        compressed: include_bytes!("../samples/lambda.fa.gz"),
    },
    Sample {
        name: "phix174",
        title: "Coliphage phiX174, complete genome, 5,386 bp",
        licence: "public sequence record (INSDC): free to use and redistribute",
        source: "NCBI Nucleotide, NC_001422.1",
        accession: "NC_001422.1",
        file_name: "phix174.fa",
        compressed: include_bytes!("../samples/phix174.fa.gz"),
    },
];

/// Every bundled sample.
pub fn samples() -> &'static [Sample] {
    SAMPLES
}

/// The bundled sample of this name; an unknown name is an error that lists the known ones.
pub fn sample(name: &str) -> Result<&'static Sample> {
    SAMPLES.iter().find(|s| s.name == name).ok_or_else(|| Error::UnknownSample {
        name: name.to_owned(),
        known: SAMPLES.iter().map(|s| s.name).collect::<Vec<_>>().join(", "),
    })
}

impl Sample {
    /// The file's content, decompressed.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        flate2::read::GzDecoder::new(self.compressed)
            .read_to_end(&mut bytes)
            .expect("a sample is valid gzip: a test reads each of them");
        bytes
    }

    /// Writes the file into the folder `dir`, which is created if it is missing, and returns its path.
    pub fn write_to(&self, dir: &Path) -> Result<PathBuf> {
        std::fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
        let path = dir.join(self.file_name);
        let mut file = AtomicFile::create(&path)?;
        file.write_all(&self.bytes()).map_err(Error::io("write", &path))?;
        file.commit()?;
        Ok(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(fasta: &[u8]) -> Vec<u8> {
        let lines = fasta.split(|&b| b == b'\n').filter(|line| !line.starts_with(b">"));
        lines.flatten().copied().collect()
    }

    #[test]
    fn samples_have_their_published_length_and_no_ambiguous_base() {
        for (name, length) in [("lambda", 48_502), ("phix174", 5_386)] {
            let bases = sequence(&sample(name).unwrap().bytes());
            assert_eq!(bases.len(), length, "{name}");
            assert!(bases.iter().all(|b| b"ACGT".contains(b)), "{name}");
        }
    }

    #[cfg(feature = "job")]
    #[test]
    fn samples_have_the_checksums_of_their_readme() {
        let readme = include_str!("../samples/README.md");
        for sample in samples() {
            let bytes = sample.bytes();
            for hash in [crate::job::sha256(&bytes), crate::job::sha256(&sequence(&bytes))] {
                assert!(readme.contains(&hash), "{}: {hash} is not in samples/README.md", sample.name);
            }
        }
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let message = sample("mu").unwrap_err().to_string();
        assert_eq!(message, "no bundled sample is named \"mu\"; there are lambda, phix174");
    }

    #[test]
    fn write_to_makes_the_folder_and_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = sample("phix174").unwrap().write_to(&dir.path().join("a/b")).unwrap();
        assert_eq!(std::fs::read(path).unwrap(), sample("phix174").unwrap().bytes());
    }
}
