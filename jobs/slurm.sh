#!/usr/bin/env bash
# One run under Slurm, queued again until it is done:  sbatch jobs/slurm.sh
# Another task:  CONFIG=configs/icu.toml sbatch jobs/slurm.sh   (settings: jobs/common.sh)
# An array of tasks, each of which goes on by itself:  TASKS=tasks.txt sbatch --array=1-3 jobs/slurm.sh
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
# shellcheck source=jobs/common.sh
source jobs/common.sh

# The number of an array stands for all of its elements.
job=$SLURM_JOB_ID
if [[ -n ${SLURM_ARRAY_TASK_ID:-} ]]; then
    job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
fi

# scancel, too, sends SIGTERM. It is over with such a job, which Slurm would yet let itself be queued again.
cancelled() {
    [[ -z $warned && $(scontrol show job -o "$job") == *JobState=COMPLETING* ]]
}

code=0
run_until_stopped srun --cpus-per-task="$threads" --cpu-bind=cores --kill-on-bad-exit=1 "${fit[@]}" || code=$?
if again "$code" && ! cancelled; then
    scontrol requeue "$job" || refused
fi
exit "$code"
