#!/bin/bash
# What differs between clusters. Edit this file, or set any of these in the environment: GPUS=0 MEMORY=8G jobs/submit.sh ...
PARTITION=${PARTITION:-}             # empty: the cluster's own default
ACCOUNT=${ACCOUNT:-}
TIME_LIMIT=${TIME_LIMIT:-08:00:00}   # of one job; it goes on after a requeue
CPUS=${CPUS:-8}                      # a task
MEMORY=${MEMORY:-32G}                # a node
GPUS=${GPUS:-1}                      # a node; 0 = none
GPU_TYPE=${GPU_TYPE:-}               # as in --gres=gpu:TYPE:1
SBATCH_MORE=${SBATCH_MORE:-}         # more options of sbatch, as in "--qos=long --constraint=a100"
VENV=${VENV:-.venv}                  # where lit_xai is installed
if [ "$GPUS" = 0 ]; then TRAINER=${TRAINER:-cpu}; else TRAINER=${TRAINER:-gpu}; fi  # a file of configs/trainer

environment() {  # of a job; submit.sh looks the options up in it, too
  # module load cuda
  if [ -f "$VENV/bin/activate" ]; then source "$VENV/bin/activate"; fi
  export WANDB_MODE=${WANDB_MODE:-offline}  # compute nodes often have no network: wandb sync uploads later
  export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
  export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}  # srun does not take it over from sbatch
}

sbatch_options() {  # what sbatch is told
  echo "--time=$TIME_LIMIT --cpus-per-task=$CPUS --mem=$MEMORY"
  [ -z "$PARTITION" ] || echo "--partition=$PARTITION"
  [ -z "$ACCOUNT" ] || echo "--account=$ACCOUNT"
  [ "$GPUS" = 0 ] || echo "--gres=gpu:${GPU_TYPE:+$GPU_TYPE:}$GPUS"
  echo "$SBATCH_MORE"
}

# run, not sourced: the options of sbatch, as in sbatch $(jobs/settings.sh) jobs/folds.sbatch
if [ "${BASH_SOURCE[0]}" = "$0" ]; then sbatch_options; fi
