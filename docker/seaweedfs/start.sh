#!/bin/sh
# Starts SeaweedFS with a bucket `mlflow`, for one user whose keys are made here at the first start.
# The server reads them from the same volume: no person has to know them.
set -eu
umask 077

random() { head -c "$1" /dev/urandom | od -An -v -tx1 | tr -d ' \n'; }

credentials=/keys/credentials
if [ ! -s "$credentials" ]; then
    printf '[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n' "$(random 10)" "$(random 32)" >"$credentials.new"
    mv "$credentials.new" "$credentials"
fi
access=$(sed -n 's/^aws_access_key_id = //p' "$credentials")
secret=$(sed -n 's/^aws_secret_access_key = //p' "$credentials")
cat >/tmp/s3.json <<END
{"identities": [{"name": "mlflow", "credentials": [{"accessKey": "$access", "secretKey": "$secret"}],
  "actions": ["Admin", "Read", "Write", "List", "Tagging"]}]}
END

# Its parts trust each other by these alone. All of them run in this one process, so that nobody else has to know them either.
WEED_JWT_SIGNING_KEY=$(random 32)
WEED_JWT_SIGNING_READ_KEY=$(random 32)
WEED_JWT_FILER_SIGNING_KEY=$(random 32)
WEED_JWT_FILER_SIGNING_READ_KEY=$(random 32)
export WEED_JWT_SIGNING_KEY WEED_JWT_SIGNING_READ_KEY WEED_JWT_FILER_SIGNING_KEY WEED_JWT_FILER_SIGNING_READ_KEY

exec weed -logtostderr=true mini -dir=/data -ip=127.0.0.1 -ip.bind=0.0.0.0 -bucket=mlflow \
    -s3.port=8333 -s3.config=/tmp/s3.json -s3.port.iceberg=0 -s3.port.lance=0 \
    -filer.localSocket=/tmp/filer.sock -s3.localSocket=/tmp/s3.sock \
    -admin.ui=false -webdav=false -master.telemetry=false
