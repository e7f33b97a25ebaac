#!/usr/bin/env bash
# One run under Slurm, queued again until it is done:  sbatch jobs/slurm.sh
# Another task:  CONFIG=configs/icu.toml sbatch jobs/slurm.sh   (settings: jobs/common.sh)
#
#SBATCH --job-name=distqexp
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=32
#SBATCH --cpus-per-task=1
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=distqexp-%j.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"
source jobs/common.sh

code=0
run_until_stopped srun --cpus-per-task="$threads" --cpu-bind=cores --kill-on-bad-exit=1 "${fit[@]}" || code=$?
if ((code == 75)); then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
