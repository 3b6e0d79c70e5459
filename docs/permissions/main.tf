# SPDX-License-Identifier: Apache-2.0
variable "airflow_service_account" {
  description = "Email of the service account that workers, triggerers and the API server run as"
  type        = string
}

variable "images_bucket" {
  type = string
}

variable "videos_bucket" {
  type = string
}

locals {
  member = "serviceAccount:${var.airflow_service_account}"
}

resource "google_storage_bucket_iam_member" "videos" {
  bucket = var.videos_bucket
  role   = "roles/storage.objectUser"
  member = local.member
}

resource "google_storage_bucket_iam_member" "images" {
  bucket = var.images_bucket
  role   = "roles/storage.objectViewer"
  member = local.member
}

# Only for images in a private bucket, where the credentials have no key of their own to sign links with.
resource "google_service_account_iam_member" "signing" {
  service_account_id = "projects/-/serviceAccounts/${var.airflow_service_account}"
  role               = "roles/iam.serviceAccountTokenCreator"
  member             = local.member
}
