#!/bin/sh
# Made by `python -m deploy.render` from deploy/values.yaml: change values there, and text in deploy/templates.
# What deploy/gcp/cluster.yaml needs of a project, once: network, service accounts with the least rights that work,
# placement, bucket, image repository. Run it as an owner of the project; a second run stops at what is there.
set -eu
project=your-project region=us-central1 bucket=your-bucket name=altdiffusion subnet=altdiffusion
account() { echo "serviceAccount:$1@$project.iam.gserviceaccount.com"; }

# A network of its own: the nodes reach each other; SSH comes only through Google's identity-aware proxy.
gcloud compute networks create "$name" --project="$project" --subnet-mode=custom --mtu=8896
gcloud compute networks subnets create "$subnet" --project="$project" --network="$name" --region="$region" \
  --range=10.10.0.0/20 --enable-private-ip-google-access
gcloud compute firewall-rules create "$name-inside" --project="$project" --network="$name" --allow=tcp,udp,icmp \
  --source-tags="$name" --target-tags="$name"
gcloud compute firewall-rules create "$name-ssh" --project="$project" --network="$name" --allow=tcp:22 \
  --source-ranges=35.235.240.0/20 --target-tags="$name"
gcloud compute routers create "$name" --project="$project" --network="$name" --region="$region"
gcloud compute routers nats create "$name" --project="$project" --router="$name" --region="$region" \
  --auto-allocate-nat-external-ips --nat-all-subnet-ip-ranges
gcloud compute resource-policies create group-placement "$name" --project="$project" --region="$region" \
  --collocation=collocated

# One account per kind of node. The head may start nodes, and only with the workers' account.
for kind in head worker; do
  gcloud iam service-accounts create "$name-$kind" --project="$project"
done
gcloud iam roles create altdiffusionNodes --project="$project" --title="Nodes of a Ray cluster" --permissions=\
compute.instances.create,compute.instances.delete,compute.instances.get,compute.instances.list,\
compute.instances.setLabels,compute.instances.setMetadata,compute.instances.setServiceAccount,\
compute.instances.setTags,compute.disks.create,compute.images.useReadOnly,compute.subnetworks.use,\
compute.resourcePolicies.use,compute.zoneOperations.get,compute.projects.get,compute.machineTypes.get,\
compute.acceleratorTypes.get
gcloud projects add-iam-policy-binding "$project" --member="$(account "$name-head")" \
  --role="projects/$project/roles/altdiffusionNodes" --condition=None
gcloud iam service-accounts add-iam-policy-binding "$name-worker@$project.iam.gserviceaccount.com" \
  --project="$project" --member="$(account "$name-head")" --role=roles/iam.serviceAccountUser

gcloud storage buckets create "gs://$bucket" --project="$project" --location="$region" \
  --uniform-bucket-level-access --public-access-prevention
gcloud artifacts repositories create "$name" --project="$project" --location="$region" --repository-format=docker
for kind in head worker; do
  gcloud storage buckets add-iam-policy-binding "gs://$bucket" --member="$(account "$name-$kind")" \
    --role=roles/storage.objectUser
  gcloud artifacts repositories add-iam-policy-binding "$name" --project="$project" --location="$region" \
    --member="$(account "$name-$kind")" --role=roles/artifactregistry.reader
done

# Ray's launcher gives an account of its own all of Compute and Storage, unless it finds these bindings. They are made
# under a condition that never holds, and the account is disabled: nothing uses it, since cluster.yaml names others.
gcloud iam service-accounts create ray-autoscaler-sa-v1 --project="$project"
gcloud iam service-accounts disable "ray-autoscaler-sa-v1@$project.iam.gserviceaccount.com" --project="$project"
for role in storage.objectAdmin compute.admin iam.serviceAccountUser iam.roleViewer; do
  gcloud projects add-iam-policy-binding "$project" --member="$(account ray-autoscaler-sa-v1)" --role="roles/$role" \
    --condition='title=never,expression=request.time < timestamp("2020-01-01T00:00:00Z")'
done
