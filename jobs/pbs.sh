#!/usr/bin/env bash
# One run under PBS, submitted again until it is done:  qsub jobs/pbs.sh
# Another task:  qsub -v CONFIG=configs/icu.toml,DISTQEXP_DATA jobs/pbs.sh   (settings: jobs/common.sh)
# An array of tasks, each of which goes on by itself:  qsub -J 1-3 -v TASKS=tasks.txt jobs/pbs.sh
#
#PBS -N distqexp
#PBS -l select=2:ncpus=32:mpiprocs=32:ompthreads=1
#PBS -l place=scatter
#PBS -l walltime=04:00:00
#PBS -r y
#PBS -j oe
set -euo pipefail
cd "${PBS_O_WORKDIR:-.}"
# shellcheck source=jobs/common.sh
source jobs/common.sh
own_scratch

# PBS has no directive for a signal before the wall time, so stop 3 minutes before the 4 hours above are over.
stop_after=${STOP_AFTER:-$((4 * 3600 - 180))}
ranks=$(wc -l <"$PBS_NODEFILE")

code=0
run_until_stopped timeout --foreground --preserve-status --signal=USR1 "$stop_after" \
    mpirun -n "$ranks" --hostfile "$PBS_NODEFILE" "${exports[@]}" "${fit[@]}" || code=$?
if again "$code"; then
    # PBS takes no dependency on an element of an array, and here all ranks have ended already.
    after=()
    if [[ $PBS_JOBID != *"["* ]]; then
        after=(-W "depend=afterany:$PBS_JOBID")
    fi
    qsub "${after[@]}" -v "$settings" jobs/pbs.sh || refused
fi
exit "$code"
