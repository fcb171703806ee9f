#!/bin/sh
# Install the agent programs that come from npm, each in the one version that its hook works with.
#
#     infra/setup-programs.sh FOLDER
#
# FOLDER is what Airflow's setting `[agents] programs` names.
set -eu
. "$(dirname "$0")/debian.sh"

folder=$1
set -- \
    @github/copilot@1.0.102 \
    @qwen-code/qwen-code@0.15.10

need node=nodejs npm=npm
rm -f "$folder/installed"
mkdir -p "$folder"
npm install --prefix "$folder" --no-audit --no-fund --loglevel=error "$@"
touch "$folder/installed"
