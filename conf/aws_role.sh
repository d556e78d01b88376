#!/usr/bin/env bash
# Once per AWS account: the role `vopcore` that the machines of cluster.yaml have. The head starts machines with it,
# all of them use the bucket.   conf/aws_role.sh BUCKET
set -euo pipefail
bucket=$1

trust='{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "sts:AssumeRole",
  "Principal": {"Service": "ec2.amazonaws.com"}}]}'
aws iam create-role --role-name vopcore --assume-role-policy-document "$trust"
aws iam attach-role-policy --role-name vopcore --policy-arn arn:aws:iam::aws:policy/AmazonEC2FullAccess
role=$(aws iam get-role --role-name vopcore --query Role.Arn --output text)
policy='{"Version": "2012-10-17", "Statement": [
  {"Effect": "Allow", "Action": "iam:PassRole", "Resource": "'$role'"},
  {"Effect": "Allow", "Action": "ssm:GetParameters", "Resource": "arn:aws:ssm:*::parameter/aws/service/*"},
  {"Effect": "Allow", "Action": "s3:*", "Resource": ["arn:aws:s3:::'$bucket'", "arn:aws:s3:::'$bucket'/*"]}]}'
aws iam put-role-policy --role-name vopcore --policy-name vopcore --policy-document "$policy"
aws iam create-instance-profile --instance-profile-name vopcore
aws iam add-role-to-instance-profile --instance-profile-name vopcore --role-name vopcore
