#!/bin/sh
# Serves MLflow with users and passwords, on every kind of cluster: runs in PostgreSQL, artifacts in an object store.
# Everything comes from the environment, so that no password is in a file of the image or on a command line:
#   PGHOST PGUSER PGPASSWORD             PostgreSQL with a database mlflow, and the right to make another
#   MLFLOW_ADMIN_PASSWORD                at least 12 characters
#   MLFLOW_FLASK_SERVER_SECRET_KEY       random; the same on every start
#   MLFLOW_ARTIFACTS                     such as s3://your-bucket/mlflow
#   MLFLOW_HOSTS                         names by which clients call it, with port, separated by commas
#   MLFLOW_HOST MLFLOW_PORT              where it listens (127.0.0.1 unless MLFLOW_HOST is set, 5000)
set -eu
umask 077
: "${PGHOST:?}" "${PGUSER:?}" "${PGPASSWORD:?}" "${MLFLOW_ADMIN_PASSWORD:?}"
: "${MLFLOW_FLASK_SERVER_SECRET_KEY:?}" "${MLFLOW_ARTIFACTS:?}" "${MLFLOW_HOSTS:?}"
python - <<'PYTHON'
import psycopg2

connection = psycopg2.connect(dbname="mlflow")
connection.autocommit = True
cursor = connection.cursor()
cursor.execute("select 1 from pg_database where datname = 'mlflow_auth'")
if cursor.fetchone() is None:
    cursor.execute("create database mlflow_auth")
PYTHON
settings=$(mktemp)
cat > "$settings" <<INI
[mlflow]
default_permission = READ
database_uri = postgresql+psycopg2:///mlflow_auth
admin_username = admin
admin_password = $(printf %s "$MLFLOW_ADMIN_PASSWORD" | sed 's/%/%%/g')
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
INI
export MLFLOW_AUTH_CONFIG_PATH="$settings" MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false
exec mlflow server --app-name basic-auth --host "${MLFLOW_HOST:-127.0.0.1}" --port "${MLFLOW_PORT:-5000}" --workers 1 \
  --allowed-hosts "$MLFLOW_HOSTS" --backend-store-uri postgresql+psycopg2:///mlflow \
  --serve-artifacts --artifacts-destination "$MLFLOW_ARTIFACTS"
