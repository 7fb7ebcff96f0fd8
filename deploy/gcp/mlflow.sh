#!/bin/sh
# Made by `python -m deploy.render` from deploy/values.yaml: change values there, and text in deploy/templates.
# MLflow with Cloud SQL for PostgreSQL and the bucket, on one small machine without an address on the internet.
#   deploy/gcp/mlflow.sh        after deploy/gcp/setup.sh; passwords are made here and kept in Secret Manager only
set -eu
project=your-project region=us-central1 zone=us-central1-a bucket=your-bucket name=altdiffusion
account="$name-mlflow@$project.iam.gserviceaccount.com"
gcloud iam service-accounts create "$name-mlflow" --project="$project"
gcloud storage buckets add-iam-policy-binding "gs://$bucket" --member="serviceAccount:$account" \
  --role=roles/storage.objectUser \
  --condition="title=mlflow,expression=resource.name.startsWith('projects/_/buckets/$bucket/objects/mlflow/')"
gcloud artifacts repositories add-iam-policy-binding "$name" --project="$project" --location="$region" \
  --member="serviceAccount:$account" --role=roles/artifactregistry.reader
for secret in database admin flask; do
  openssl rand -hex 24 | tr -d '\n' | gcloud secrets create "$name-mlflow-$secret" --project="$project" --data-file=-
  gcloud secrets add-iam-policy-binding "$name-mlflow-$secret" --project="$project" \
    --member="serviceAccount:$account" --role=roles/secretmanager.secretAccessor
done

gcloud compute addresses create "$name-sql" --project="$project" --global --purpose=VPC_PEERING --prefix-length=24 \
  --network="$name"
gcloud services vpc-peerings connect --project="$project" --service=servicenetworking.googleapis.com \
  --ranges="$name-sql" --network="$name"
gcloud sql instances create "$name" --project="$project" --region="$region" --database-version=POSTGRES_15 \
  --tier=db-custom-2-8192 --edition=enterprise --network="$name" --no-assign-ip --ssl-mode=ENCRYPTED_ONLY \
  --backup-start-time=03:00 --deletion-protection
gcloud sql databases create mlflow --project="$project" --instance="$name"
gcloud sql users create mlflow --project="$project" --instance="$name" \
  --password="$(gcloud secrets versions access latest --project="$project" --secret="$name-mlflow-database")"
host=$(gcloud sql instances describe "$name" --project="$project" --format='value(ipAddresses[0].ipAddress)')

start=$(mktemp)
cat > "$start" <<START
#!/bin/sh
umask 077
secret() { gcloud secrets versions access latest --project=$project --secret=$name-mlflow-\$1; }
cat > /run/mlflow.env <<ENV
PGHOST=$host
PGUSER=mlflow
PGSSLMODE=require
PGPASSWORD=\$(secret database)
MLFLOW_ADMIN_PASSWORD=\$(secret admin)
MLFLOW_FLASK_SERVER_SECRET_KEY=\$(secret flask)
MLFLOW_ARTIFACTS=gs://$bucket/mlflow
MLFLOW_HOST=0.0.0.0
MLFLOW_HOSTS=mlflow.internal,mlflow.internal:5000,127.0.0.1:5000
MLFLOW_PORT=5000
ENV
gcloud auth configure-docker us-central1-docker.pkg.dev --quiet
docker run --detach --restart=always --name=mlflow --network=host --env-file=/run/mlflow.env \
  us-central1-docker.pkg.dev/your-project/altdiffusion/altdiffusion:0.1.0-cuda /opt/altdiffusion/serve.sh
START
gcloud compute instances create "$name-mlflow" --project="$project" --zone="$zone" --machine-type=e2-standard-2 \
  --image=projects/your-project/global/images/altdiffusion-node --subnet=altdiffusion --no-address --tags="$name" --service-account="$account" \
  --scopes=cloud-platform --shielded-vtpm --shielded-integrity-monitoring --metadata-from-file=startup-script="$start"
rm "$start"
gcloud dns managed-zones create "$name" --project="$project" --dns-name="internal." \
  --visibility=private --networks="$name" --description="names of the cluster's services"
gcloud dns record-sets create "mlflow.internal." --project="$project" --zone="$name" --type=A --ttl=60 --rrdatas="$(
  gcloud compute instances describe "$name-mlflow" --project="$project" --zone="$zone" \
    --format='value(networkInterfaces[0].networkIP)')"
