//! Copies that one has.

use std::path::Path;

use mamba_datasets::job::sha256;
use mamba_datasets::registry::{DataSet, Digest, DigestKind, Home, Place, Registry, histories, import};

/// Two files in a folder below, one of them known by its bases.
fn toy() -> DataSet {
    let sets = "[[set]]\nname = \"toy\"\ntitle = \"t\"\nfolder = \"test/toy\"\nlicence = \"CC0\"\ncitation = \"c\"\n\
                source = \"s\"\nimport = \"a copy\"\n";
    let bases = Digest::of(DigestKind::Bases, b">x\nACGT\n").unwrap();
    let files =
        format!("#\ntoy\tg.fa\t8\t{bases}\tcopy\t\ntoy\tsub/a.txt\t5\tsha256:{}\tcopy\t\n", sha256(b"first"));
    Registry::parse("test", sets, &files).unwrap().sets()[0].clone()
}

fn write(path: &Path, content: &[u8]) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, content).unwrap();
}

#[test]
fn files_are_known_by_their_content() {
    let dir = tempfile::tempdir().unwrap();
    let (set, home) = (toy(), Home::new(dir.path().join("cache"), None));
    write(&dir.path().join("copy/other name"), b"first");
    write(&dir.path().join("copy/noise"), b"frost");
    write(&dir.path().join("copy/deep/genome.fna"), b">another header\nac\ngt\n");
    import(&set, &dir.path().join("copy"), &home).unwrap();
    let folder = home.folder(&set);
    assert_eq!(home.find(&set), Place::Cache(folder.clone()));
    assert_eq!(std::fs::read(folder.join("sub/a.txt")).unwrap(), b"first");
    assert_eq!(home.resolve(&set, "").unwrap(), folder);
    assert_eq!(home.resolve(&set, "sub").unwrap(), folder.join("sub"));
    assert_eq!(home.resolve(&set, "sub/").unwrap(), folder.join("sub"));
    let error = home.resolve(&set, "su").unwrap_err().to_string();
    assert_eq!(error, "data set toy has no \"su\"");
    assert!(home.resolve(&set, "../toy/sub").is_err());
}

#[test]
fn an_incomplete_copy_says_what_is_missing_and_keeps_what_is_right() {
    let dir = tempfile::tempdir().unwrap();
    let (set, home) = (toy(), Home::new(dir.path().join("cache"), None));
    write(&dir.path().join("copy/a.txt"), b"frost");
    write(&dir.path().join("copy/g.fa"), b">x\nACGT\n");
    let error = import(&set, &dir.path().join("copy"), &home).unwrap_err().to_string();
    assert!(error.contains("holds 1 of the 2 files (missing: sub/a.txt)"), "{error}");
    assert!(error.contains("a.txt is not the file that is expected: SHA-256"), "{error}");
    write(&dir.path().join("rest"), b"first");
    // What the cache has already counts only where the copy has it too: a copy is judged by itself.
    assert!(import(&set, &dir.path().join("rest"), &home).is_err());
    assert_eq!(home.find(&set), Place::Cache(home.folder(&set)));
}

#[test]
fn a_shared_folder_is_used_in_place_or_unpacked_and_never_written() {
    let dir = tempfile::tempdir().unwrap();
    let (set, data) = (toy(), dir.path().join("data"));
    let home = Home::new(dir.path().join("cache"), Some(data.clone()));
    assert_eq!(home.find(&set), Place::Absent);
    let error = home.resolve(&set, "").unwrap_err().to_string();
    assert!(error.contains("is not on this machine (looked in ") && error.contains("test/toy"), "{error}");
    assert!(error.contains("it cannot be downloaded, `datasets import toy PATH`"), "{error}");

    write(&data.join("test/toy/g.fa"), b">x\nACGT\n");
    write(&data.join("test/toy/sub/a.txt"), b"first");
    assert_eq!(home.resolve(&set, "g.fa").unwrap(), data.join("test/toy/g.fa"));
    assert_eq!(home.verify(&set).unwrap(), Place::Data(data.join("test/toy")));
    assert!(!home.cache().exists());

    write(&data.join("test/toy/sub/a.txt"), b"frost");
    let error = home.resolve(&set, "").unwrap_err().to_string();
    assert!(error.contains("a.txt is not the file that is expected"), "{error}");

    std::fs::remove_file(data.join("test/toy/sub/a.txt")).unwrap();
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gz, b"first").unwrap();
    write(&data.join("test/toy/sub/a.txt.gz"), &gz.finish().unwrap());
    assert_eq!(home.find(&set), Place::Packed(data.join("test/toy")));
    assert_eq!(home.resolve(&set, "").unwrap(), home.folder(&set));
}

#[test]
fn an_original_is_converted_and_its_result_checked() {
    let dir = tempfile::tempdir().unwrap();
    let home = Home::new(dir.path().join("cache"), None);
    let ratings = b"1::30::1::7\n2::10::5::100\n1::20::3::5\n";
    let made = histories("ratings.dat", ratings).unwrap();
    let set = |digest: &Digest| {
        let sets = format!(
            "[[set]]\nname = \"films\"\ntitle = \"t\"\nfolder = \"test/films\"\nlicence = \"l\"\ncitation = \"c\"\nsource = \"s\"\n\
             import = \"ratings.dat\"\nconvert = {{ how = \"movielens\", from = \"ratings.dat\", bytes = {}, sha256 = \"{}\", \
             to = \"h.txt\" }}\n",
            ratings.len(),
            sha256(ratings)
        );
        let files = format!("#\nfilms\th.txt\t{}\t{digest}\tcopy\t\n", made.len());
        Registry::parse("test", &sets, &files).unwrap().sets()[0].clone()
    };
    let right = set(&Digest::of(DigestKind::Histories, b"2 10\n1 30 20\n").unwrap());
    write(&dir.path().join("ml/ratings.dat"), ratings);
    import(&right, &dir.path().join("ml"), &home).unwrap();
    assert_eq!(std::fs::read_to_string(home.resolve(&right, "").unwrap()).unwrap(), "1 20 30\n2 10\n");

    let wrong = set(&Digest::of(DigestKind::Histories, b"2 10\n1 30 21\n").unwrap());
    let error = import(&wrong, &dir.path().join("ml"), &home).unwrap_err().to_string();
    assert!(error.starts_with("what is made from") && error.contains("SHA-256 of the histories"), "{error}");

    let mut changed = ratings.to_vec();
    changed[3] = b'4';
    write(&dir.path().join("ml/ratings.dat"), &changed);
    let error = import(&right, &dir.path().join("ml"), &home).unwrap_err().to_string();
    assert!(error.contains("ratings.dat has SHA-256") && error.contains("(missing: h.txt)"), "{error}");
}
