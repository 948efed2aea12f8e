# Sourced by every job: what differs between clusters. Edit this file, nothing else.
# Partition, account and time limits: export SBATCH_PARTITION, SBATCH_ACCOUNT, SBATCH_TIMELIMIT before sbatch.
VENV=${VENV:-.venv}                       # where lit_xai is installed
TRAINER=${TRAINER:-gpu}                   # a file of configs/trainer
export WANDB_MODE=${WANDB_MODE:-offline}  # compute nodes often have no network: sync the offline runs later
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}

# module load cuda                        # whatever your cluster needs
[ -f "$VENV/bin/activate" ] && source "$VENV/bin/activate"
cd "${SLURM_SUBMIT_DIR:-.}"
