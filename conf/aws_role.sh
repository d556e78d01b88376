#!/usr/bin/env bash
# What the machines of cluster.yaml may do, and who reaches them. Once per AWS account; run it again to change it.
#
#   conf/aws_role.sh BUCKET ADDRESS [PREFIX]
#
# BUCKET   holds videos, and what runs write below PREFIX (default vopcore): all machines read the whole bucket,
#          and write and delete below PREFIX only
# ADDRESS  the one address that may open SSH, such as 203.0.113.5; yours: curl -s https://checkip.amazonaws.com
#
# Makes the instance profiles vopcore-head (may also start and end machines) and vopcore-worker, and the security
# group vopcore in the default VPC. Needs the `aws` command (https://aws.amazon.com/cli) with rights on IAM and EC2.
set -euo pipefail

if [ $# -lt 2 ]; then
    sed -n '2,13s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
if ! command -v aws >/dev/null; then
    echo "conf/aws_role.sh: the aws command is not here: https://aws.amazon.com/cli, or pip install awscli" >&2
    exit 2
fi
bucket=$1
address=$2
prefix=${3:-vopcore}

trust='{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "sts:AssumeRole",
  "Principal": {"Service": "ec2.amazonaws.com"}}]}'

make_role() {
    aws iam get-role --role-name "$1" >/dev/null 2>&1 ||
        aws iam create-role --role-name "$1" --assume-role-policy-document "$trust" >/dev/null
    aws iam put-role-policy --role-name "$1" --policy-name vopcore --policy-document "$2"
    aws iam get-instance-profile --instance-profile-name "$1" >/dev/null 2>&1 || {
        aws iam create-instance-profile --instance-profile-name "$1" >/dev/null
        aws iam add-role-to-instance-profile --instance-profile-name "$1" --role-name "$1"
    }
}

use_bucket='
  {"Effect": "Allow", "Action": ["s3:ListBucket", "s3:GetBucketLocation"], "Resource": "arn:aws:s3:::'$bucket'"},
  {"Effect": "Allow", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::'$bucket'/*"},
  {"Effect": "Allow", "Action": ["s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload",
    "s3:ListMultipartUploadParts"], "Resource": "arn:aws:s3:::'$bucket/$prefix'/*"}'

make_role vopcore-worker '{"Version": "2012-10-17", "Statement": ['"$use_bucket"']}'
worker=$(aws iam get-role --role-name vopcore-worker --query Role.Arn --output text)

# The head starts workers, and may end only machines of a Ray cluster.
make_role vopcore-head '{"Version": "2012-10-17", "Statement": ['"$use_bucket"',
  {"Effect": "Allow", "Action": ["ec2:Describe*", "ec2:RunInstances", "ec2:CreateTags"], "Resource": "*"},
  {"Effect": "Allow", "Action": ["ec2:TerminateInstances", "ec2:StopInstances"], "Resource": "*",
    "Condition": {"StringLike": {"aws:ResourceTag/ray-cluster-name": "*"}}},
  {"Effect": "Allow", "Action": "iam:PassRole", "Resource": "'$worker'"},
  {"Effect": "Allow", "Action": "ssm:GetParameters", "Resource": "arn:aws:ssm:*::parameter/aws/service/*"}]}'

# Ray leaves a group alone that has rules, and would otherwise open SSH to everybody.
vpc=$(aws ec2 describe-vpcs --filters Name=is-default,Values=true --query 'Vpcs[0].VpcId' --output text)
find_group() {
    aws ec2 describe-security-groups --filters Name=group-name,Values=vopcore "Name=vpc-id,Values=$vpc" \
        --query 'SecurityGroups[0].GroupId' --output text
}
group=$(find_group)
if [ "$group" = None ]; then
    aws ec2 create-security-group --group-name vopcore --description "vopcore: Ray cluster" --vpc-id "$vpc" >/dev/null
    group=$(find_group)
    aws ec2 authorize-security-group-ingress --group-id "$group" --protocol=-1 --source-group "$group" >/dev/null
fi
for old in $(aws ec2 describe-security-groups --group-ids "$group" --output text \
    --query 'SecurityGroups[0].IpPermissions[?FromPort==`22`].IpRanges[].CidrIp'); do
    aws ec2 revoke-security-group-ingress --group-id "$group" --protocol tcp --port 22 --cidr "$old" >/dev/null
done
aws ec2 authorize-security-group-ingress --group-id "$group" --protocol tcp --port 22 --cidr "$address/32" >/dev/null
echo "vopcore-head and vopcore-worker use s3://$bucket (write below $prefix/); SSH to group vopcore from $address"
