#!/usr/bin/env bash
# The figures of fine-tuning in ../README.md: GUE tasks (MCC on the given test split) and UCI splice junctions (accuracy of a
# 10-fold cross-validation), from scratch, three seeds. What is finished is left as it is, what was cut short goes on.
#
#   figures/gue.sh dev DATA OUT     candidates on the training and dev splits alone, one seed each
#   figures/gue.sh test DATA OUT    three other seeds of each task's candidate with the best dev MCC
#   figures/gue.sh table DATA OUT   what there is so far
#
# DATA holds GUE/TASK/{train,dev,test}.csv and uci_splice/splice.csv. MAMBA names the program, RUN a command in front of
# every training (such as `nice`), TASKS the tasks, CANDIDATES the candidates.
#
# UCI splice junctions have no dev split: its candidates are compared on a tenth of the sequences, which the
# cross-validation later holds out too, fold by fold.
set -euo pipefail
(($# == 3)) || { sed -n '2,15s/^# \{0,1\}//p' "$0"; exit 2; }
phase=$1 data=$2 out=$3
mamba=${MAMBA:-mamba-genomics}
read -ra run <<< "${RUN:-}"
read -ra tasks <<< "${TASKS:-prom/prom_core_tata mouse/0 uci_splice mouse/2 prom/prom_300_tata tf/0 tf/1}"

# Promoters and splice junctions were cut out in the direction of their gene, at a fixed place; peaks of transcription factors
# have no direction.
flags() {
    case $1 in
        prom/prom_core_tata) echo --strands given --set head.stem.positions=70 --epochs 30 ;;
        prom/prom_300_tata) echo --strands given --set head.stem.positions=300 --epochs 20 ;;
        uci_splice) echo --strands given --set head.stem.positions=60 --set task.shift=0 --epochs 20 ;;
        mouse/0) echo --epochs 25 ;;
        mouse/2) echo --epochs 40 ;;
        tf/*) echo --epochs 8 ;;
    esac
}

candidate() {
    case $1 in
        motif) ;;
        wide) echo --set "head.stem.kernels=[5,11,19]" --set head.stem.channels=128 --set head.dropout=0.3 ;;
        still) echo --set task.shift=0 --set task.mask=0.1 --set head.dropout=0.3 ;;
        deep) echo --set model.d_model=128 --set model.n_layer=3 --set head.dropout=0.3 --learning-rate 1e-3 ;;
    esac
}

# The candidate of a task with the best dev MCC.
chosen() {
    python3 - "$out/dev" "${1//\//_}" <<'PYTHON'
import glob, json, sys
folder, task = sys.argv[1:]
scores = {}
for path in glob.glob(f"{folder}/{task}.*/report.json"):
    name = path.split("/")[-2].rsplit(".", 1)[1]
    scores[name] = json.load(open(path))["valid"]["figures"]["mcc"]["value"]
print(max(scores, key=scores.get) if scores else "motif")
PYTHON
}

files() {
    case $1 in
        uci_splice) echo "$data/uci_splice/splice.csv" ;;
        *) echo "$data/GUE/$1/train.csv" --valid "$data/GUE/$1/dev.csv" ;;
    esac
}

# train FOLDER ARGUMENTS...
train() {
    local folder=$out/$1
    shift
    [[ -e $folder/report.json ]] && return
    mkdir -p "$folder"
    echo "$folder" >&2
    # The time of the processor says how long it takes on a machine that does nothing else.
    TIMEFORMAT='{"real": %R, "user": %U, "sys": %S}'
    { time "${run[@]}" "$mamba" finetune "$@" --out "$folder" --resume --quiet --format json \
        > "$folder/log.jsonl" 2> "$folder/errors.txt"; } 2>> "$folder/times.jsonl" || cat "$folder/errors.txt" >&2
}

case $phase in
    dev)
        for task in "${tasks[@]}"; do
            for name in ${CANDIDATES:-motif wide still deep}; do
                # shellcheck disable=SC2046
                train "dev/${task//\//_}.$name" $(files "$task") --set data.test=0 --seed 100 $(flags "$task") $(candidate "$name")
            done
        done
        ;;
    test)
        for seed in 1 2 3; do
            for task in "${tasks[@]}"; do
                if [[ $task == uci_splice ]]; then held_out=(--folds 10 --set "data.split_seed=$seed"); else held_out=(--test "$data/GUE/$task/test.csv"); fi
                # shellcheck disable=SC2046
                train "test/${task//\//_}.$seed" $(files "$task") "${held_out[@]}" --seed $seed $(flags "$task") $(candidate "$(chosen "$task")")
            done
        done
        ;;
    table) ;;
    *) echo "dev, test or table?" >&2; exit 2 ;;
esac

python3 - "$out" <<'PYTHON'
import glob, json, os, sys
out = sys.argv[1]

def minutes(folder):
    """Processor time of all parts of a run, on two cores."""
    try:
        lines = [json.loads(line) for line in open(folder + "/times.jsonl") if line.startswith("{")]
    except OSError:
        return float("nan")
    return sum(line["user"] + line["sys"] for line in lines) / 120

for folder in sorted(glob.glob(out + "/dev/*/")):
    if os.path.exists(folder + "report.json"):
        report = json.load(open(folder + "report.json"))
        figures = report["valid"]["figures"]
        print(f"dev   {os.path.basename(folder[:-1]):28} mcc {100 * figures['mcc']['value']:.1f}  accuracy {figures['accuracy']['value']:.4f}  step {report['steps']}  {minutes(folder):.1f} min")
tasks = sorted({os.path.basename(f[:-1]).rsplit(".", 1)[0] for f in glob.glob(out + "/test/*/")})
for task in tasks:
    values, times, parameters = [], [], None
    for folder in sorted(glob.glob(f"{out}/test/{task}.*/")):
        if not os.path.exists(folder + "report.json"):
            continue
        report = json.load(open(folder + "report.json"))
        if "pooled" in report:
            values.append(100 * report["pooled"]["figures"]["accuracy"]["value"])
        else:
            values.append(100 * report["test"]["figures"]["mcc"]["value"])
            parameters = report["parameters"]
        times.append(minutes(folder))
    if values:
        print(f"test  {task:28} mean {sum(values) / len(values):.1f}  {min(values):.1f} to {max(values):.1f}  seeds {len(values)}  {max(times):.1f} min  {parameters or ''} parameters")
PYTHON
