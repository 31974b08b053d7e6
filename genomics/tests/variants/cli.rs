//! The commands `variants`, `protein` and `embed --window none`.

use super::scores::lambda;
use arrow_array::Array;
use arrow_array::cast::AsArray;
use arrow_array::types::Float32Type;
use assert_cmd::Command;
use mamba_genomics::tokenizer;
use noodles::bgzf;
use std::fs;
use std::io::{Read, Write};
use std::path::PathBuf;

struct Folder(tempfile::TempDir);

/// Exit code, standard output, standard error.
type Ended = (i32, String, String);

impl Folder {
    /// With phage lambda as `ref.fa`, and `calls.vcf` of 40 records.
    fn new() -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        mamba_datasets::sample("lambda").unwrap().write_to(folder.0.path()).unwrap();
        let sample = fs::read_dir(folder.0.path()).unwrap().next().unwrap().unwrap().path();
        let text = fs::read_to_string(&sample).unwrap();
        fs::remove_file(sample).unwrap();
        let body = text.split_once('\n').unwrap().1;
        folder.write("ref.fa", format!(">chrL phage lambda\n{body}"));
        folder.write("calls.vcf", calls());
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.path(name), content).unwrap();
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    fn run(&self, args: &str) -> Ended {
        self.run_stdin(args, Vec::new())
    }

    fn run_stdin(&self, args: &str, stdin: Vec<u8>) -> Ended {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mamba-genomics"));
        command.current_dir(self.0.path()).args(args.split_whitespace()).write_stdin(stdin);
        let output = command.output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }

    /// Runs what must succeed.
    fn ok(&self, args: &str) -> Ended {
        let ended = self.run(args);
        assert_eq!(ended.0, 0, "{args}: {ended:?}");
        ended
    }
}

/// Substitutions, insertions, deletions and what is not scored, at places all over the genome.
fn calls() -> String {
    let genome = tokenizer::decode(&lambda());
    let mut text = String::from(
        "##fileformat=VCFv4.3\n##contig=<ID=chrL>\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\tone\n",
    );
    for i in 0..40usize {
        let at = 1 + i * 1190;
        let base = &genome[at..at + 1];
        let other = if base == "A" { "C" } else { "A" };
        let (reference, alt) = match i % 8 {
            0 => (genome[at..at + 3].to_string(), base.to_string()),
            1 => (base.to_string(), format!("{base}ACGT")),
            2 => (base.to_string(), format!("{other},<DEL>,*")),
            3 => (base.to_string(), ".".to_string()),
            4 => (base.to_string(), "N".to_string()),
            _ => (base.to_string(), other.to_string()),
        };
        text.push_str(&format!(
            "chrL\t{}\trs{i}\t{reference}\t{alt}\t50\tPASS\tDP={i};OLD\tGT\t0/1\n",
            at + 1
        ));
    }
    text
}

/// Values of an INFO field of each line, empty where there is none.
fn info(vcf: &str, key: &str) -> Vec<String> {
    let value = |line: &str| {
        let info = line.split('\t').nth(7).unwrap();
        let field = info.split(';').find_map(|field| field.strip_prefix(&format!("{key}=")));
        field.unwrap_or_default().to_owned()
    };
    vcf.lines().filter(|line| !line.starts_with('#')).map(value).collect()
}

#[test]
fn every_record_comes_back_with_scores_or_a_reason() {
    let folder = Folder::new();
    let (_, stdout, stderr) =
        folder.ok("variants calls.vcf --reference ref.fa --out scored.vcf --flank 100 --format json");
    let summary: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((&summary["records"], &summary["scored"]), (&40.into(), &30.into()), "{stderr}");
    assert_eq!(
        summary["skipped"],
        serde_json::json!({ "symbolic": 5, "overlapping_deletion": 5, "no_alternate": 5, "ambiguous_base": 5 })
    );
    let manifest: serde_json::Value = serde_json::from_str(&folder.text("scored.vcf.manifest.json")).unwrap();
    assert_eq!(
        (&manifest["rows"], &manifest["counts"]["scored"], &manifest["counts"]["symbolic"]),
        (&40.into(), &30.into(), &5.into())
    );
    let (before, after) = (folder.text("calls.vcf"), folder.text("scored.vcf"));
    let added: Vec<&str> = after.lines().filter(|line| line.starts_with("##INFO=<ID=MAMBA_")).collect();
    assert!(added.len() == 3 && added[0].contains(env!("CARGO_PKG_VERSION")), "{added:?}");
    // All but the new fields is as it was.
    let stripped: Vec<String> = after
        .lines()
        .filter(|line| !line.starts_with("##INFO=<ID=MAMBA_"))
        .map(|line| {
            let columns = line.split('\t').map(|column| {
                column.split(';').filter(|field| !field.starts_with("MAMBA_")).collect::<Vec<_>>().join(";")
            });
            columns.collect::<Vec<_>>().join("\t")
        })
        .collect();
    assert_eq!(stripped, before.lines().collect::<Vec<_>>());
    let (llr, distance, skip) =
        (info(&after, "MAMBA_LLR"), info(&after, "MAMBA_DIST"), info(&after, "MAMBA_SKIP"));
    assert_eq!(skip[2], ".,symbolic,overlapping_deletion");
    assert!(llr[2].ends_with(",.,.") && distance[2].ends_with(",.,."));
    assert_eq!(
        (llr[4].as_str(), skip[4].as_str(), llr[3].as_str(), skip[3].as_str()),
        ("", "ambiguous_base", "", "")
    );
    assert!(llr[0].parse::<f64>().unwrap() != 0.0 && distance[0].parse::<f64>().unwrap() > 0.0);
}

#[test]
fn scores_of_an_earlier_run_are_replaced() {
    let folder = Folder::new();
    folder
        .ok("variants calls.vcf --reference ref.fa --out first.vcf --flank 100 --pool 18446744073709551615");
    folder
        .ok("variants first.vcf --reference ref.fa --out second.vcf --flank 90 --no-distance --max-indel 1");
    folder.ok("variants calls.vcf --reference ref.fa --out fresh.vcf --flank 90 --no-distance --max-indel 1");
    assert!(folder.text("first.vcf").contains("##INFO=<ID=MAMBA_DIST"));
    assert!(!folder.text("fresh.vcf").contains("MAMBA_DIST"));
    assert!(folder.text("second.vcf") == folder.text("fresh.vcf"));
    folder.write("windows.vcf", folder.text("calls.vcf").replace('\n', "\r\n"));
    folder.ok("variants windows.vcf --reference ref.fa --out lf.vcf --flank 90 --no-distance --max-indel 1");
    assert!(folder.text("lf.vcf") == folder.text("fresh.vcf"));
}

#[test]
fn bgzip_streams_tables_batches_and_shards_say_the_same() {
    let folder = Folder::new();
    folder.ok("variants calls.vcf --reference ref.fa --out a.vcf --flank 100");
    // bgzip in and out, other batches, an index, a compressed reference
    let bgzip = |text: &str| {
        let mut writer = bgzf::io::Writer::new(Vec::new());
        writer.write_all(text.as_bytes()).unwrap();
        writer.finish().unwrap()
    };
    folder.write("calls.vcf.gz", bgzip(&folder.text("calls.vcf")));
    folder.write("ref.fa.gz", bgzip(&folder.text("ref.fa")));
    folder.ok("variants calls.vcf.gz --reference ref.fa.gz --out b.vcf.gz --flank 100 --batch-tokens 700 --threads 1");
    let mut text = String::new();
    let file = fs::File::open(folder.path("b.vcf.gz")).unwrap();
    bgzf::io::Reader::new(file).read_to_string(&mut text).unwrap();
    assert_eq!(text.replace("ref.fa.gz", "ref.fa"), folder.text("a.vcf"));
    // a stream
    let stream = folder.run_stdin(
        "variants - --reference ref.fa --out - --flank 100 --quiet",
        folder.text("calls.vcf").into(),
    );
    assert_eq!((stream.0, stream.1), (0, folder.text("a.vcf")), "{}", stream.2);
    // other chromosome names
    folder.write("plain.vcf", folder.text("calls.vcf").replace("chrL\t", "L\t"));
    let (code, _, stderr) = folder.run("variants plain.vcf --reference ref.fa --out c.vcf");
    assert!(
        code == 1 && stderr.contains("chromosome \"L\" is not in ref.fa") && stderr.contains("--match-chr"),
        "{stderr}"
    );
    assert!(!folder.path("c.vcf").exists());
    folder.ok("variants plain.vcf --reference ref.fa --out c.vcf --flank 100 --match-chr");
    assert_eq!(info(&folder.text("c.vcf"), "MAMBA_LLR"), info(&folder.text("a.vcf"), "MAMBA_LLR"));
    // tables, in one file and in parts by two shards
    folder.ok("variants calls.vcf --reference ref.fa --out t.parquet --flank 100");
    for shard in ["0/2", "1/2"] {
        folder.ok(&format!(
            "variants calls.vcf --reference ref.fa --out parts --flank 100 --part-records 7 --shard {shard}"
        ));
    }
    let whole = table(&folder, &["t.parquet".into()]);
    let parts: Vec<String> = (0..6).map(|i| format!("parts/part-{i:05}.parquet")).collect();
    assert_eq!(table(&folder, &parts), whole);
    assert_eq!(whole.len(), 50);
    let in_vcf: Vec<String> = info(&folder.text("a.vcf"), "MAMBA_LLR")
        .iter()
        .flat_map(|values| values.split(',').map(str::to_owned).collect::<Vec<_>>())
        .filter(|value| !value.is_empty() && value != ".")
        .collect();
    let in_table: Vec<String> = whole.iter().filter_map(|row| row.3).map(|llr| format!("{llr:.6}")).collect();
    assert_eq!(in_table, in_vcf);
    // a finished output stays, another input is refused
    let before = folder.text("a.vcf");
    let (_, _, stderr) = folder.ok("variants calls.vcf --reference ref.fa --out a.vcf --flank 100");
    assert!(stderr.contains("finished before"), "{stderr}");
    let (code, _, stderr) = folder.run("variants calls.vcf --reference ref.fa --out a.vcf --flank 90");
    assert!(code == 1 && stderr.contains("flank"), "{stderr}");
    assert_eq!(folder.text("a.vcf"), before);
}

/// Position, allele, reason, ratio.
type TableRow = (u64, Option<String>, Option<String>, Option<f32>);

fn table(folder: &Folder, names: &[String]) -> Vec<TableRow> {
    let mut rows = Vec::new();
    for name in names {
        let file = fs::File::open(folder.path(name)).unwrap();
        let reader = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
        for batch in reader.build().unwrap() {
            let batch = batch.unwrap();
            let column = |name: &str| batch.column_by_name(name).unwrap().clone();
            let (pos, alt, skip, llr) = (column("pos1"), column("alt"), column("skip"), column("llr"));
            let pos = pos.as_primitive::<arrow_array::types::UInt64Type>();
            let (alt, skip) = (alt.as_string::<i32>(), skip.as_string::<i32>());
            let llr = llr.as_primitive::<Float32Type>();
            for i in 0..batch.num_rows() {
                let text = |column: &arrow_array::StringArray| {
                    (!column.is_null(i)).then(|| column.value(i).to_owned())
                };
                rows.push((pos.value(i), text(alt), text(skip), (!llr.is_null(i)).then(|| llr.value(i))));
            }
        }
    }
    rows
}

#[test]
fn mistakes_stop_with_the_line_and_leave_nothing_behind() {
    let folder = Folder::new();
    let calls = folder.text("calls.vcf");
    let head: String = calls.lines().take(3).map(|line| format!("{line}\n")).collect();
    let base = &tokenizer::decode(&lambda())[99..100];
    let wrong = if base == "A" { "C" } else { "A" };
    folder.write("wrong.vcf", format!("{head}chrL\t100\t.\t{wrong}\t{base}\t.\t.\t.\tGT\t0\n"));
    let (code, _, stderr) = folder.run("variants wrong.vcf --reference ref.fa --out x.vcf");
    let expected = format!("wrong.vcf:4: REF is {wrong:?} at chrL:100, where ref.fa has {base:?}");
    assert!(code == 1 && stderr.contains(&expected), "{stderr}");
    let (_, stdout, _) =
        folder.ok("variants wrong.vcf --reference ref.fa --out x.vcf --skip-mismatches --format json");
    assert!(stdout.contains("\"reference_mismatch\":1"), "{stdout}");
    let (code, _, stderr) = folder.run("variants calls.vcf --reference none.fa --out y.vcf");
    assert!(code == 1 && stderr.contains("none.fa"), "{stderr}");
    for (args, message) in [
        ("--out y.bam", "expected .vcf, .vcf.gz, .parquet, .csv, .tsv, or a directory"),
        ("--out y.vcf --shard 0/2", "--shard needs a directory of parts"),
        ("--out y.vcf --batch-tokens 0", "must be at least 1"),
    ] {
        let (code, _, stderr) = folder.run(&format!("variants calls.vcf --reference ref.fa {args}"));
        assert!(code == 2 && stderr.contains(message), "{stderr}");
    }
    let names: Vec<_> = fs::read_dir(folder.0.path())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(names.iter().all(|name| !name.starts_with('y') && !name.contains(".tmp-")), "{names:?}");
}

#[test]
fn a_record_without_windows_has_the_vector_of_one_window() {
    let folder = Folder::new();
    folder.ok("embed ref.fa --window none --out none.csv");
    folder.ok("embed ref.fa --window 50000 --overlap 0 --out one.csv");
    let vector = |name: &str| -> Vec<f32> {
        let text = folder.text(name);
        text.lines().nth(1).unwrap().split(',').skip(3).map(|x| x.parse().unwrap()).collect()
    };
    let (none, one) = (vector("none.csv"), vector("one.csv"));
    let largest = one.iter().fold(0f32, |m, x| m.max(x.abs()));
    assert!(none.len() == 64 && none.iter().zip(&one).all(|(a, b)| (a - b).abs() < 1e-4 * largest));
    let (code, _, stderr) = folder.run("embed ref.fa --window none --per window --out x.csv");
    assert!(code == 2 && stderr.contains("--per window needs a window"), "{stderr}");
}

#[test]
fn training_with_growing_windows_and_recomputed_blocks_learns_and_resumes() {
    let folder = Folder::new();
    let train = |out: &str, more: &str| {
        format!(
            "train ref.fa --out {out} --preset tiny --length 256 --warmup-length 32 --batch 2 --steps 6 \
             --set data.valid=0.1 --set data.test=0.1 --set train.eval_every=3 --set train.log_every=1 {more}"
        )
    };
    folder.ok(&train("a", "--recompute"));
    folder.ok(&train("b", ""));
    let losses = |out: &str| -> Vec<String> {
        let text = folder.text(&format!("{out}/metrics.jsonl"));
        let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        lines.map(|line| format!("{} {}", line["loss"], line["metrics"])).collect()
    };
    assert_eq!(losses("a"), losses("b"), "recomputing changes nothing");
    let (code, _, stderr) = folder.run(&train("c", "--warmup-length 300").replace("--warmup-length 32 ", ""));
    assert!(code == 2 && stderr.contains("length_warmup.from is 300"), "{stderr}");
    assert!(!folder.path("c").exists());
}

#[test]
fn a_protein_model_trains_scores_and_fills_in() {
    let folder = Folder::new();
    // A made-up family: members of one ancestor.
    let ancestor = b"MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVGDGTQDNLSGAEKAVQ";
    let mut text = String::new();
    for i in 0..24usize {
        let mut member = ancestor.to_vec();
        (0..4).for_each(|j| member[(7 * i + 13 * j) % 54] = b"LAGVSERTIDPKQNFYMHWC"[(i + 5 * j) % 20]);
        text.push_str(&format!(">m{i}\n{}\n", String::from_utf8(member).unwrap()));
    }
    folder.write("family.fa", text);
    folder.write("query.fa", format!(">q some text\n{}\n", std::str::from_utf8(ancestor).unwrap()));
    let small = "--steps 4 --batch 2 --length 128 --set model.d_model=16 --set model.n_layer=1 --quiet";
    for model in ["protmamba", "ptm-mamba", "msa-mamba"] {
        let (_, stdout, _) =
            folder.ok(&format!("protein train family.fa --model {model} --out {model} {small}"));
        assert!(stdout.contains("frequencies") && stdout.contains("bits per residue"), "{stdout}");
        folder.ok(&format!("protein score family.fa --checkpoint {model} --out {model}.tsv"));
        let table = folder.text(&format!("{model}.tsv"));
        assert!(table.starts_with("id\tresidues\tlog_likelihood\tperplexity\nm0\t56\t-"), "{table}");
        assert_eq!(table.lines().count(), 25);
        let context = if model == "ptm-mamba" { "" } else { "--context family.fa --context-limit 3" };
        folder.ok(&format!(
            "protein score query.fa --checkpoint {model} {context} --substitutions all --out {model}.csv"
        ));
        assert_eq!(folder.text(&format!("{model}.csv")).lines().count(), 1 + 19 * 56);
        folder.ok(&format!("protein score query.fa --checkpoint {model} {context} --substitutions M1L,K2R:T3S --out {model}-2.csv"));
        let few = folder.text(&format!("{model}-2.csv"));
        let all = folder.text(&format!("{model}.csv"));
        let score = |text: &str, name: &str| -> f64 {
            let line = text.lines().find(|line| line.starts_with(&format!("q,{name},"))).unwrap();
            line.rsplit(',').next().unwrap().parse().unwrap()
        };
        assert_eq!(score(&few, "M1L"), score(&all, "M1L"));
        assert!((score(&few, "K2R:T3S") - score(&all, "K2R") - score(&all, "T3S")).abs() < 1e-9);
    }
    let infill =
        "protein infill query.fa --checkpoint protmamba --context family.fa --span 5-8 --span 20 --samples 2";
    let (_, stdout, _) = folder.ok(infill);
    assert!(stdout.starts_with(">q_1 infill=5-8,20-20 log_likelihood=-"), "{stdout}");
    assert_eq!(stdout, folder.ok(infill).1);
    let (_, stdout, _) = folder.ok("protein infill --checkpoint protmamba --samples 3 --max-length 20");
    assert_eq!(stdout.matches(">generated_").count(), 3);
    for (args, code, message) in [
        ("score query.fa --checkpoint protmamba --substitutions A1L --out x.tsv", 2, "residue 1 is M"),
        ("score query.fa --checkpoint protmamba --substitutions M99L --out x.tsv", 2, "residues 1 to 56"),
        (
            "score query.fa --checkpoint protmamba --substitutions M1 --out x.tsv",
            2,
            "expected one such as A24G",
        ),
        (
            "score family.fa --checkpoint protmamba --substitutions all --out x.tsv",
            1,
            "need one protein, found 24",
        ),
        ("score query.fa --checkpoint ptm-mamba --context family.fa --out x.tsv", 2, "takes no context"),
        ("infill query.fa --checkpoint protmamba --span 50-60", 2, "expected FROM-TO between 1 and 56"),
        ("infill --checkpoint protmamba --samples 0", 2, "--samples and --max-length must be at least 1"),
        ("infill --checkpoint protmamba --max-length 0", 2, "--samples and --max-length must be at least 1"),
        (
            "train family.fa --model msa-mamba --out x --set model.n_head=3",
            2,
            "d_model 64 is no multiple of n_head 3",
        ),
        ("train family.fa --model ptm-mamba --out x --batch 0", 2, "batch_size is 0, must be at least 1"),
        ("train family.fa --model ptm-mamba --out x --minutes nan", 2, "max_minutes"),
        ("infill --checkpoint ptm-mamba", 2, "only ProtMamba generates"),
        ("train query.fa --model ptm-mamba --out x", 1, "items"),
        ("train ref.fa --model ptm-mamba --out x --set data.length=2", 1, "data.length is 2"),
        ("score query.fa --checkpoint none --out x.tsv", 1, "none"),
    ] {
        let (got, _, stderr) = folder.run(&format!("protein {args}"));
        assert!(got == code && stderr.contains(message), "{args}: {got} {stderr}");
    }
    assert!(!folder.path("x.tsv").exists() && !folder.path("x").exists());
    for (model, name) in
        [("protmamba", "ProtMamba: "), ("ptm-mamba", "PTM-Mamba: "), ("msa-mamba", "MSAMamba: ")]
    {
        let (_, stdout, _) = folder.ok(&format!("info {model}"));
        for text in [name, "d_model 16, 1 layers of Mamba1", "training    4 steps", "data        family.fa"] {
            assert!(stdout.contains(text), "{text}: {stdout}");
        }
        let (_, stdout, _) = folder.ok(&format!("info {model}/model.safetensors --format json"));
        let facts: serde_json::Value = serde_json::from_str(&stdout).unwrap();
        assert_eq!(facts["architecture"], model.replace('-', "_"));
        assert!(facts["parameters"]["total"].as_u64().unwrap() > 1000 && facts["run"].is_null(), "{facts}");
    }
}
