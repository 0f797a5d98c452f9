#!/usr/bin/env bash
# What an accelerator makes of this project: results beside the processor's, contracts,
# speed against peers, and published sizes. A call takes 8 minutes at most and leaves
# what it does not reach to the next; at toy size it takes what it takes.
#
#     benchmarks/accelerator.sh FOLDER          # logs, json files, summary.txt
#     TOY=1 benchmarks/accelerator.sh FOLDER    # all of it at toy size, on any machine
#
# Stages that FOLDER has are left out, so that a second call goes on. NTK_PRIVACY_DATA
# is where MNIST and CIFAR-10 are. STAGES names those to run, in place of all. What is
# timed against a peer runs when the rest has ended, one after the other. The exit code
# is 1 where a stage failed or is left; a peer that is not installed is told.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:?give a folder for the results}
python=${PYTHON:-python3}
toy=${TOY:-}
at_most=${AT_MOST:-$([ -n "$toy" ] && echo 86400 || echo 480)} # seconds
# Several processes share the device.
export XLA_PYTHON_CLIENT_PREALLOCATE=false
mkdir -p "$out"

stage() { # name, seconds at most, command
    local name=$1 limit=$2 start=$SECONDS
    shift 2
    case " ${STAGES:-$name} " in *" $name "*) ;; *) return ;; esac
    grep -q "^$name rc=0" "$out/summary.txt" 2>/dev/null && return
    local left=$((at_most - SECONDS - 20))
    if [ "$left" -lt 10 ]; then
        echo "$name rc=left" | tee -a "$out/summary.txt"
        return
    fi
    # At toy size a slow machine may take what it takes.
    [ -z "$toy" ] && [ "$limit" -lt "$left" ] || limit=$left
    # Interrupted, a test tells what failed so far.
    timeout -s INT -k 20 "$limit" "$@" >"$out/$name.log" 2>&1
    echo "$name rc=$? seconds=$((SECONDS - start))" | tee -a "$out/summary.txt"
}

bench() { # stage, seconds at most, benchmark, flags
    local name=$1 limit=$2 which=$3
    shift 3
    stage "$name" "$limit" "$python" -m "benchmarks.bench_$which" \
        --out="$out/$name.json" "$@"
}

experiment() { # stage, seconds at most, binary, flags
    local name=$1 limit=$2 which=$3
    shift 3
    stage "$name" "$limit" "$python" -m "experiments.$which" --noprogress \
        --workdir="$out/$name" "$@"
}

in_turn() { # where there are many processors all at once, else one after the other
    if [ -n "$toy" ]; then "$@"; else "$@" & fi
}

small=() rows=gradient_1000_8192 images=500 width=4096 steps=50000
tests="tests/evasion/test_every_attack.py tests/distillation/test_contract.py
    tests/curvature tests/kernels tests/reconstruction/test_closed_units.py
    tests/reconstruction/test_every_reconstruction.py
    tests/reconstruction/test_algebraic.py tests/evaluation/test_robust_accuracy.py
    tests/poisoning"
model=resnet18_64_robust attacked=200
if [ -n "$toy" ]; then
    small=(--shrink=8 --repeats=1) rows=gradient_60_512 images=20 width=256 steps=50
    tests=tests/curvature/test_regularizer.py model=convnet attacked=4
fi

stage device 60 "$python" -c 'import jax; print(jax.__version__, jax.devices())'
[ ! -f "$out/device.log" ] || cat "$out/device.log"

for group in kernels attacks_on_weights distillation robustness; do
    in_turn bench "same_$group" 240 accelerator --only="$group" "${small[@]}"
done
wait
# shellcheck disable=SC2086  # paths are words
in_turn stage contracts 240 "$python" -m pytest -q --tb=line -n "${toy:-6}" --dist loadfile \
    -m "not slow" -p no:cacheprovider -p no:benchmark $tests
in_turn experiment decode_500 240 reconstruct --dataset=mnist --num_train="$images" \
    --width="$width" --method=algebraic
in_turn experiment rkip 240 distill --dataset=mnist --method=rkip \
    --num_train=500 --num_steps="$steps" --noevaluate --noattack
in_turn bench large_gradient 240 gradient_inversion --success="$rows" --draws=1
wait

bench infinite 90 infinite "${small[@]}"
bench empirical 90 empirical "${small[@]}"
bench kkt 60 kkt
bench distill 90 distill ${toy:+--steps=5}
bench dm 60 dm ${toy:+--batch=8 --ipc=2 --width=8 --repeats=1}
if "$python" -c "import torch, torchattacks" 2>/dev/null; then
    bench evasion 200 evasion --part=speed --models="$out/models" --only="$model" \
        --attacks="$([ -n "$toy" ] && echo pgd || echo pgd,apgd_ce,autoattack)" \
        --eps=8/255 --images="$attacked"
else
    echo "evasion left out: its peer torchattacks is not installed" |
        tee -a "$out/summary.txt"
fi
cat "$out/summary.txt"
# Of each stage the last line counts.
awk '$2 ~ /^rc=/ { last[$1] = $2 }
    END { for (name in last) if (last[name] != "rc=0") { print name, last[name]; bad = 1 }
          exit bad }' "$out/summary.txt"
