#!/bin/bash
# sbatch examples/cluster/torchrun.sh: one training on two machines with four GPUs each; gradients are averaged by torch.
#SBATCH --job-name=adctl-train
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
set -euo pipefail

source /shared/adctl/bin/activate
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun torchrun --nnodes="$SLURM_NNODES" --nproc-per-node=4 --rdzv-backend=c10d --rdzv-endpoint="$head:29500" \
  -m adctl train --good /shared/parts/good --arch efficientad --runs /shared/runs --name line3
