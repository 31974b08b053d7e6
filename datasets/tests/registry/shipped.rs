//! The sets that the crate knows, on real files where there are any.

use mamba_datasets::registry::{Home, Place, Registry, info, list, resolve};

#[test]
fn bundled_sets_need_no_network() {
    let dir = tempfile::tempdir().unwrap();
    let home = Home::new(dir.path(), None);
    let path = home.resolve(info("lambda").unwrap(), "").unwrap();
    assert_eq!(path, dir.path().join("genomics/lambda/lambda.fa"));
    assert!(std::fs::read(&path).unwrap().starts_with(b">NC_001416.1"));
    assert_eq!(
        home.verify(info("lambda").unwrap()).unwrap(),
        Place::Cache(dir.path().join("genomics/lambda"))
    );
}

#[test]
fn a_path_stays_what_it_is_and_an_unknown_name_is_told_apart_from_a_missing_file() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    assert_eq!(resolve(path).unwrap(), file.path());
    let missing = resolve("no/such/file.csv").unwrap_err().to_string();
    assert_eq!(missing, "cannot open no/such/file.csv");
    let unknown = resolve("ml-1k").unwrap_err().to_string();
    assert!(unknown.starts_with("no data set is named \"ml-1k\"; similar: ml-1"), "{unknown}");
}

#[test]
fn every_set_of_a_real_data_folder_has_its_checksums() {
    let Some(data) = std::env::var_os("MAMBA_DATA").filter(|data| !data.is_empty()) else {
        eprintln!("skipped: MAMBA_DATA is not set");
        return;
    };
    let cache = tempfile::tempdir().unwrap();
    let home = Home::new(cache.path(), Some(data.into()));
    let mut seen = 0;
    for set in list() {
        let path = home.resolve(set, "").unwrap_or_else(|error| panic!("{}: {error}", set.name));
        assert!(path.exists(), "{}", set.name);
        home.verify(set).unwrap();
        seen += 1;
    }
    assert_eq!(seen, Registry::bundled().sets().len());
}
