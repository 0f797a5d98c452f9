#!/usr/bin/env bash
# What an accelerator makes of the benchmarks and of the paper's settings: 8 minutes.
#
#     benchmarks/accelerator.sh FOLDER     # logs, results.json, summary.txt
#
# Stages that FOLDER has are left out, so that a second call goes on. NTK_PRIVACY_DATA
# is where MNIST is. STAGES names those to run, in place of all.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:?give a folder for the results}
python=${PYTHON:-python3}
mkdir -p "$out"

stage() { # name, seconds at most, command
    local name=$1 limit=$2 start=$SECONDS
    shift 2
    case " ${STAGES:-$name} " in *" $name "*) ;; *) return ;; esac
    grep -q "^$name rc=0" "$out/summary.txt" 2>/dev/null && return
    timeout "$limit" "$@" >"$out/$name.log" 2>&1
    echo "$name rc=$? seconds=$((SECONDS - start))" | tee -a "$out/summary.txt"
}

binary() { # name of an experiment, flags
    local name=$1
    shift
    echo "$python -m experiments.$name --noprogress $*"
}

stage device 60 "$python" -c 'import jax; print(jax.__version__, jax.devices())'
cat "$out/device.log"
for name in infinite empirical kkt distill; do
    stage "bench_$name" 90 "$python" -m "benchmarks.bench_$name" --out="$out/$name.json"
done
mnist="--dataset=mnist --num_images=20"
# shellcheck disable=SC2046,SC2086  # flags are words
{
    stage paper_kkt 150 $(binary reconstruct $mnist --width=4096 --method=kkt \
        --preset=paper --workdir="$out/paper_kkt")
    stage rkip 90 $(binary distill --dataset=mnist --method=rkip --num_images=500 \
        --workdir="$out/rkip")
    stage standard_auto 240 $(binary reconstruct $mnist --width=4096 \
        --dynamics=standard --method=auto --workdir="$out/standard_auto")
}
cat "$out/summary.txt"
