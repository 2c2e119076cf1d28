#!/bin/sh
# Start the head of a cluster of your own machines: clusters/local/head.sh [OPTIONS OF ray start]
set -eu
# shellcheck source=clusters/environment.sh
. "$(dirname "$0")/../environment.sh"
token="$HOME/.ray/auth_token"
(umask 077 && ray get-auth-token --generate >/dev/null) # makes one where there is none
if [ -e "$token" ]; then chmod 600 "$token"; fi         # Ray itself leaves it readable to everybody
exec ray start --head "$@"
