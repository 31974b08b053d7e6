//! Reading and writing VCF, and alleles against a reference.

use mamba_genomics::fasta::IndexedFasta;
use mamba_genomics::tokenizer::decode;
use mamba_genomics::variants::site::trim;
use mamba_genomics::variants::vcf::header_with;
use mamba_genomics::variants::{Reference, Site, SiteOptions, Skip, VcfReader, VcfRecord};
use proptest::prelude::*;
use std::io::Write;

const HEAD: &str = "##fileformat=VCFv4.2\n##source=test\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n";
/// 20 bases with a run of A and an N at its end.
const FASTA: &str = ">chr1 some text\nACGTAAAACG\nGGTTCCACGN\n";

fn read(text: &str) -> Result<Vec<VcfRecord>, String> {
    let bytes = text.as_bytes().to_vec();
    let reader =
        VcfReader::from_reader("calls.vcf", std::io::Cursor::new(bytes)).map_err(|e| e.to_string())?;
    reader.collect::<Result<_, _>>().map_err(|e| e.to_string())
}

fn one(line: &str) -> VcfRecord {
    read(&format!("{HEAD}{line}\n")).unwrap().remove(0)
}

fn reference(options: SiteOptions) -> (Reference, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ref.fa");
    std::fs::write(&path, FASTA).unwrap();
    (Reference::new(IndexedFasta::open([&path]).unwrap(), "ref.fa", options), dir)
}

fn sites(line: &str, options: SiteOptions) -> Result<Vec<Result<Site, Skip>>, mamba_genomics::Error> {
    reference(options).0.sites("calls.vcf", &one(line))
}

fn text(site: &Site) -> [String; 4] {
    [&site.left, &site.reference, &site.alternate, &site.right].map(|ids| decode(ids))
}

#[test]
fn fields_are_read_and_everything_else_stays_as_it_is() {
    let line = "chr1\t7\trs1;x\tA\tC,<DEL>,*\t9.5\tPASS\tDP=3;MAMBA_LLR=9;AF=0.5\tGT\t0/1\t./.";
    let record = one(line);
    assert_eq!((record.line, record.pos1, record.id.as_str()), (4, 7, "rs1;x"));
    assert_eq!(record.alternates, ["C", "<DEL>", "*"]);
    let written = record.with_info(&[("MAMBA_LLR", "1,.,.".into()), ("MAMBA_SKIP", ".,symbolic,x".into())]);
    assert_eq!(
        written,
        line.replace("DP=3;MAMBA_LLR=9;AF=0.5", "DP=3;AF=0.5;MAMBA_LLR=1,.,.;MAMBA_SKIP=.,symbolic,x")
    );
    assert_eq!(one("1\t5\t.\tA\t.\t.\t.\t.").with_info(&[("K", "v".into())]), "1\t5\t.\tA\t.\t.\t.\tK=v");
    assert_eq!(one("1\t5\t.\tA\t.\t.\t.\t.").with_info(&[]), "1\t5\t.\tA\t.\t.\t.\t.");
    let header: Vec<String> = HEAD.lines().map(str::to_owned).collect();
    let new = ["##INFO=<ID=MAMBA_SKIP,Number=A>".to_string()];
    let twice = header_with(&header_with(&header, &new), &new);
    assert_eq!(twice[2..], [new[0].clone(), header[2].clone()]);
}

#[test]
fn fields_and_definitions_of_an_earlier_run_are_dropped() {
    let record = one("1\t5\t.\tA\tC\t.\t.\tMAMBA_DIST=3;DP=1;MAMBA_SKIP=symbolic;MAMBA_LLR=2;MAMBA_LLRS=1");
    assert_eq!(
        record.with_info(&[("MAMBA_LLR", "1".into())]),
        "1\t5\t.\tA\tC\t.\t.\tDP=1;MAMBA_LLRS=1;MAMBA_LLR=1"
    );
    assert_eq!(one("1\t5\t.\tA\t.\t.\t.\tMAMBA_SKIP=no_alternate").with_info(&[]), "1\t5\t.\tA\t.\t.\t.\t.");
    let header = ["##fileformat=VCFv4.2", "##INFO=<ID=MAMBA_DIST,Number=A>", "##INFO=<ID=DP>", "#CHROM"];
    let new = ["##INFO=<ID=MAMBA_LLR>".to_string()];
    assert_eq!(header_with(&header.map(String::from), &new), [header[0], header[2], &new[0], header[3]]);
}

#[test]
fn windows_line_ends_blank_last_lines_and_no_last_line_end_are_read() {
    let line = "chr1\t7\t.\tA\tC\t.\t.\t.";
    let plain = read(&format!("{HEAD}{line}\n")).unwrap();
    for text in [
        format!("{HEAD}{line}"),
        format!("{HEAD}{line}\n\n"),
        format!("{HEAD}{line}\n").replace('\n', "\r\n"),
    ] {
        assert_eq!(read(&text).unwrap(), plain);
    }
    assert!(read(HEAD).unwrap().is_empty());
}

#[test]
fn broken_files_are_refused_with_their_line() {
    for (text, message) in [
        (String::new(), "calls.vcf: file is empty"),
        ("chr1\t1\n".into(), "calls.vcf:1: not a VCF file"),
        ("##fileformat=VCFv4.2\n".into(), "calls.vcf:1: the file ends before its line of column names"),
        ("##fileformat=VCFv4.2\nchr1\n".into(), "calls.vcf:2: a line that is neither"),
        (
            "##fileformat=VCFv4.2\n#CHROM\tPOS\n".into(),
            "calls.vcf:2: the line of column names has fewer than 8",
        ),
        (format!("{HEAD}chr1\t7\n"), "calls.vcf:4: expected at least 8 columns separated by tabs, found 2"),
        (format!("{HEAD}chr1\tx\t.\tA\tC\t.\t.\t.\n"), "calls.vcf:4: POS is \"x\", expected a whole number"),
        (format!("{HEAD}chr1\t-1\t.\tA\tC\t.\t.\t.\n"), "calls.vcf:4: POS is \"-1\""),
        (format!("{HEAD}chr1\t7\t.\tA\tC,\t.\t.\t.\n"), "calls.vcf:4: REF or ALT has an empty allele"),
    ] {
        let error = read(&text).unwrap_err();
        assert!(error.starts_with(message), "{error}");
    }
}

#[test]
fn a_truncated_bgzip_file_is_refused_before_any_work() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("calls.vcf.gz");
    let mut writer = noodles::bgzf::io::Writer::new(Vec::new());
    writer.write_all(format!("{HEAD}chr1\t7\t.\tA\tC\t.\t.\t.\n").as_bytes()).unwrap();
    let whole = writer.finish().unwrap();
    std::fs::write(&path, &whole).unwrap();
    assert_eq!(VcfReader::open(&path).unwrap().count(), 1);
    std::fs::write(&path, &whole[..whole.len() - 28]).unwrap();
    assert!(
        VcfReader::open(&path).err().unwrap().to_string().ends_with("(its end-of-file block is missing)")
    );
}

#[test]
fn alleles_are_trimmed_and_put_into_their_windows() {
    let options = SiteOptions { flank: 3, ..SiteOptions::default() };
    let window = |line: &str| sites(line, options).unwrap().remove(0).map(|site| text(&site));
    let expect = |a: [&str; 4]| Ok(a.map(str::to_owned));
    assert_eq!(window("chr1\t4\t.\tT\tG\t.\t.\t."), expect(["ACG", "T", "G", "AAA"]));
    assert_eq!(window("chr1\t1\t.\ta\tg\t.\t.\t."), expect(["", "A", "G", "CGT"]));
    // an insertion and a deletion in a run, at its left end
    assert_eq!(window("chr1\t4\t.\tT\tTA\t.\t.\t."), expect(["CGT", "", "A", "AAA"]));
    assert_eq!(window("chr1\t4\t.\tTA\tT\t.\t.\t."), expect(["CGT", "A", "", "AAA"]));
    assert_eq!(window("chr1\t7\t.\tAA\tA\t.\t.\t."), expect(["TAA", "A", "", "ACG"]));
    assert_eq!(window("chr1\t2\t.\tCGT\tCAT\t.\t.\t."), expect(["AC", "G", "A", "TAA"]));
    assert_eq!(window("chr1\t9\t.\tCG\tGC\t.\t.\t."), expect(["AAA", "CG", "GC", "GGT"]));
}

#[test]
fn what_is_not_scored_says_why() {
    let line = |reference: &str, alt: &str| format!("chr1\t4\t.\t{reference}\t{alt}\t.\t.\t.");
    let options = SiteOptions { longest: 3, ..SiteOptions::default() };
    for (reference, alt, skip) in [
        ("T", ".", Skip::NoAlternate),
        ("T", "<DEL>", Skip::Symbolic),
        ("T", "T[chr2:7[", Skip::Symbolic),
        ("T", ".A", Skip::Symbolic),
        ("T", "*", Skip::Overlapping),
        ("T", "N", Skip::Ambiguous),
        ("T", "R", Skip::Ambiguous),
        ("N", "A", Skip::Ambiguous),
        ("T", "t", Skip::SameAsReference),
        ("T", "TACGT", Skip::TooLong),
        ("TAAAA", "T", Skip::TooLong),
    ] {
        let found = sites(&line(reference, alt), options).unwrap();
        assert_eq!(found, [Err(skip)], "{reference} {alt}");
    }
    let many = sites(&line("T", "G,*,C"), options).unwrap();
    assert!(many[0].is_ok() && many[1] == Err(Skip::Overlapping) && many[2].is_ok());
    // the reference has N there
    assert_eq!(sites("chr1\t20\t.\tA\tC\t.\t.\t.", options).unwrap(), [Err(Skip::Ambiguous)]);
    let error = sites(&line("T", "Q"), options).unwrap_err().to_string();
    assert_eq!(error, "calls.vcf:4: ALT is \"Q\", which is no DNA");
}

#[test]
fn a_wrong_reference_is_explained() {
    let options = SiteOptions::default();
    let error = sites("chr1\t5\t.\tCG\tC\t.\t.\t.", options).unwrap_err();
    assert_eq!(error.to_string(), "calls.vcf:4: REF is \"CG\" at chr1:5, where ref.fa has \"AA\"");
    assert!(error.hint().unwrap().contains("--skip-mismatches"));
    let skipping = SiteOptions { skip_mismatches: true, ..options };
    assert_eq!(sites("chr1\t5\t.\tC\tG\t.\t.\t.", skipping).unwrap(), [Err(Skip::ReferenceMismatch)]);

    let error = sites("1\t5\t.\tA\tG\t.\t.\t.", options).unwrap_err();
    assert_eq!(error.to_string(), "calls.vcf:4: chromosome \"1\" is not in ref.fa, which has chr1");
    assert!(error.hint().unwrap().starts_with("the reference calls it \"chr1\": --match-chr"));
    let matching = SiteOptions { match_chr: true, ..options };
    assert!(sites("1\t5\t.\tA\tG\t.\t.\t.", matching).unwrap()[0].is_ok());
    assert!(sites("2\t5\t.\tA\tG\t.\t.\t.", matching).is_err());
    let skipping = SiteOptions { skip_unknown: true, ..options };
    assert_eq!(sites("2\t5\t.\tA\tG\t.\t.\t.", skipping).unwrap(), [Err(Skip::UnknownChromosome)]);

    for (pos, reference) in [("21", "A"), ("20", "GA"), ("0", "A"), ("18446744073709551615", "A")] {
        let error =
            sites(&format!("chr1\t{pos}\t.\t{reference}\tG\t.\t.\t."), options).unwrap_err().to_string();
        assert!(error.contains("lies outside \"chr1\", which has 20 bases in ref.fa"), "{error}");
    }
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in "(##fileformat=VCFv4.[0-9]\n)?(#CHROM(\tX){7,9}\n)?([^\n]{0,30}\t){0,12}[^\n]{0,9}\n{0,2}") {
        let _ = read(&text);
    }

    #[test]
    fn any_fields_are_read_or_refused(fields in proptest::collection::vec("[A-Za-z0-9.,<>*;=\\[\\] -]{0,8}", 8..11)) {
        if let Ok(records) = read(&format!("{HEAD}{}\n", fields.join("\t"))) {
            for record in &records {
                prop_assert_eq!(record.with_info(&[]).split('\t').count(), fields.len());
                let _ = reference(SiteOptions::default()).0.sites("x", record);
            }
        }
    }

    #[test]
    fn trimming_keeps_both_haplotypes(a in "[AC]{1,8}", b in "[AC]{1,8}") {
        let (prefix, short_a, short_b) = trim(a.as_bytes(), b.as_bytes());
        let before = &a.as_bytes()[..prefix];
        let after = &a.as_bytes()[prefix + short_a.len()..];
        prop_assert_eq!([before, short_b, after].concat(), b.as_bytes());
        if let (Some(x), Some(y)) = (short_a.first(), short_b.first()) {
            prop_assert!(x != y && short_a.last() != short_b.last());
        }
    }
}
