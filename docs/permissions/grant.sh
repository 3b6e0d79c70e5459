# SPDX-License-Identifier: Apache-2.0
# Grants an Airflow identity what this provider needs in Cloud Storage, and nothing else.
# Usage: PROJECT=my-project IDENTITY=serviceAccount:airflow@my-project.iam.gserviceaccount.com sh grant.sh
set -eu
IMAGES=${IMAGES:-my-images}
VIDEOS=${VIDEOS:-my-videos}

# [START videos]
gcloud storage buckets add-iam-policy-binding "gs://$VIDEOS" \
    --member="$IDENTITY" --role=roles/storage.objectUser
# [END videos]

# [START images]
gcloud storage buckets add-iam-policy-binding "gs://$IMAGES" \
    --member="$IDENTITY" --role=roles/storage.objectViewer
# [END images]

# [START signing]
gcloud iam service-accounts add-iam-policy-binding "${IDENTITY#serviceAccount:}" --project="$PROJECT" \
    --member="$IDENTITY" --role=roles/iam.serviceAccountTokenCreator
# [END signing]
