#!/usr/bin/env bash
# One run under LSF, which queues it again for as long as it exits with 75:  bsub < jobs/lsf.sh
# Another task:  CONFIG=configs/icu.toml bsub < jobs/lsf.sh   (settings: jobs/common.sh)
# An array of tasks, each of which goes on by itself:  TASKS=tasks.txt bsub -J "distqexp[1-3]" < jobs/lsf.sh
#
#BSUB -J distqexp
#BSUB -n 64
#BSUB -R "span[ptile=32] affinity[core(1)]"
#BSUB -W 4:00
#BSUB -wa USR1
#BSUB -wt 3
#BSUB -r
#BSUB -Q 75
#BSUB -o distqexp-%J.log
set -euo pipefail
cd "${LS_SUBCWD:-.}"
# shellcheck source=jobs/common.sh
source jobs/common.sh
own_scratch

code=0
run_until_stopped mpirun -n "$LSB_DJOB_NUMPROC" --hostfile "$LSB_DJOB_HOSTFILE" "${exports[@]}" "${fit[@]}" || code=$?
# LSF goes by the exit code alone.
if again "$code"; then
    code=75
elif ((code == 75)); then
    code=130
fi
exit "$code"
