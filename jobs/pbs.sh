#!/usr/bin/env bash
# One run under PBS, submitted again until it is done:  qsub jobs/pbs.sh
# Another task:  qsub -v CONFIG=configs/icu.toml,DISTQEXP_DATA jobs/pbs.sh   (settings: jobs/common.sh)
#
#PBS -N distqexp
#PBS -l select=2:ncpus=32:mpiprocs=32:ompthreads=1
#PBS -l place=scatter
#PBS -l walltime=04:00:00
#PBS -r y
#PBS -j oe
set -euo pipefail
cd "${PBS_O_WORKDIR:-.}"
source jobs/common.sh

# PBS has no directive for a signal before the wall time, so stop 3 minutes before the 4 hours above are over.
stop_after=${STOP_AFTER:-$((4 * 3600 - 180))}
ranks=$(wc -l <"$PBS_NODEFILE")

code=0
run_until_stopped timeout --foreground --preserve-status --signal=USR1 "$stop_after" \
    mpirun -n "$ranks" --hostfile "$PBS_NODEFILE" "${exports[@]}" "${fit[@]}" || code=$?
if ((code == 75)); then
    qsub -W depend=afterany:"$PBS_JOBID" -v "$settings" jobs/pbs.sh
fi
exit "$code"
