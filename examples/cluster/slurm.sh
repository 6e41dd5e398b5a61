#!/bin/bash
# sbatch examples/cluster/slurm.sh: starts a Ray cluster on the nodes of the job and scores with it.
#SBATCH --job-name=adctl
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --time=02:00:00
set -euo pipefail

source /shared/adctl/bin/activate            # an environment with adctl[ray] that all nodes see
export RAY_USAGE_STATS_ENABLED=0
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address="$(srun --nodes=1 --ntasks=1 -w "$head" hostname --ip-address | awk '{print $1}'):6379"

srun --nodes=1 --ntasks=1 -w "$head" \
  ray start --head --port=6379 --num-cpus="$SLURM_CPUS_PER_TASK" --include-dashboard=false --block &
sleep 15
srun --nodes=$((SLURM_NNODES - 1)) --ntasks=$((SLURM_NNODES - 1)) --exclude="$head" \
  ray start --address="$address" --num-cpus="$SLURM_CPUS_PER_TASK" --block &
sleep 15

# The batch script runs on the first node, which is the head.
adctl score /shared/images/today --model /shared/runs/line3 --out /shared/scores/today --ray "$address"
adctl train --data /shared/parts --category all --arch padim,patchcore --seed 0,1 --runs /shared/runs \
  --name grid --ray "$address" --ray-cpus 8
ADCTL_DATABASE=postgresql://adctl@database/adctl \
  adctl tune --good /shared/parts/zipper/train/good --arch padim --trials 80 --runs /shared/runs --ray "$address" --ray-cpus 8
