"""cluster.yaml as Ray's own launcher reads it, against the stack of deploy/aws in moto: no cloud is asked."""

from __future__ import annotations

import base64
import copy
import fnmatch
import json
import os
import shutil
import stat
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import moto
import pytest
import yaml
from ray.autoscaler._private import util as launcher
from ray.autoscaler._private.aws import config as aws_config
from ray.autoscaler._private.aws import utils as aws_utils
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.updater import NodeUpdater
from ray.autoscaler.tags import TAG_RAY_NODE_KIND

from deploy.render import read_values, rendered
from tests.deploy.fake_host import FakeHost

ROOT = Path(__file__).resolve().parents[2]
REGION, ACCOUNT, BUCKET, CIDR = "us-east-1", "123456789012", "your-bucket", "203.0.113.0/24"
Config = dict[str, Any]


class Stack:
    """The stack in an account, and the file that a user's values make of it."""

    def __init__(self, folder: Path) -> None:
        ec2 = boto3.client("ec2", REGION)
        vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
        subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.0.0.0/20", AvailabilityZone=f"{REGION}a")
        self.subnet = subnet["Subnet"]["SubnetId"]
        given = {"VpcId": vpc, "SubnetId": self.subnet, "SshCidr": CIDR, "Bucket": BUCKET}
        stacks = boto3.client("cloudformation", REGION)
        stacks.create_stack(
            StackName="altdiffusion",
            TemplateBody=(ROOT / "deploy/aws/stack.yaml").read_text(),
            Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in given.items()],
            Capabilities=["CAPABILITY_NAMED_IAM"],
        )
        (stack,) = stacks.describe_stacks(StackName="altdiffusion")["Stacks"]
        outputs = {one["OutputKey"]: one["OutputValue"] for one in stack["Outputs"]}
        assert outputs["Subnet"] == self.subnet
        self.group = outputs["SecurityGroup"]
        key = folder / "altdiffusion.pem"
        key.write_text(ec2.create_key_pair(KeyName="altdiffusion")["KeyMaterial"])
        key.chmod(0o600)
        own = {
            "image": f"{outputs['Repository']}:0.1.0-cuda",
            "ami": ec2.describe_images()["Images"][0]["ImageId"],
            "ssh_private_key": str(key),
            "subnet": self.subnet,
            "security_group": self.group,
        }
        (folder / "my.yaml").write_text(yaml.safe_dump({"aws": own}))
        self.config = yaml.safe_load(rendered(read_values(str(folder / "my.yaml")))["cluster.yaml"])


@pytest.fixture()
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with moto.mock_aws():
        for cached in (aws_utils.resource_cache, aws_utils.client_cache, aws_config._get_subnets_or_die):
            cached.cache_clear()
        yield Stack(tmp_path)
    for cached in (aws_utils.resource_cache, aws_utils.client_cache, aws_config._get_subnets_or_die):
        cached.cache_clear()


def bootstrapped(config: Config) -> Config:
    """Do what `ray up` does with the file before it asks for the first node."""
    prepared = launcher.prepare_config(copy.deepcopy(config))
    launcher.validate_config(prepared)
    made: Config = aws_config.bootstrap_aws(prepared)
    return made


def launch(config: Config, node_type: str) -> dict[str, Any]:
    """Start a node of a type as the launcher and the autoscaler do, and return what EC2 has of it."""
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    settings = copy.deepcopy(config["available_node_types"][node_type]["node_config"])
    tags = {TAG_RAY_NODE_KIND: "head" if node_type == config["head_node_type"] else "worker"}
    (node,) = provider._create_node(settings, tags, 1)
    (found,) = boto3.client("ec2", REGION).describe_instances(InstanceIds=[node])["Reservations"]
    instance: dict[str, Any] = found["Instances"][0]
    return instance


def test_nodes_of_every_type_start_locked(stack: Stack) -> None:
    config = bootstrapped(stack.config)
    for node_type, given in config["available_node_types"].items():
        instance = launch(config, node_type)
        profile = "altdiffusion-head" if node_type == "head" else "altdiffusion-worker"
        assert instance["IamInstanceProfile"]["Arn"].endswith(f"/{profile}"), node_type
        assert instance["InstanceType"] == given["node_config"]["InstanceType"]
        options = given["node_config"]["MetadataOptions"]
        assert options == {"HttpTokens": "required", "HttpPutResponseHopLimit": 1}
        groups = {group["GroupId"] for card in instance["NetworkInterfaces"] for group in card["Groups"]}
        assert groups == {stack.group}, node_type
        assert {card["SubnetId"] for card in instance["NetworkInterfaces"]} == {stack.subnet}
        for disk in given["node_config"]["BlockDeviceMappings"]:
            assert disk["Ebs"]["Encrypted"]


def test_nothing_is_made_in_the_account_besides_the_stack(stack: Stack) -> None:
    """Without profiles and groups in the file, Ray makes a role with all of EC2 and S3, and opens SSH to the world."""
    ec2, iam = boto3.client("ec2", REGION), boto3.client("iam", REGION)

    def there() -> list[str]:
        groups = [group["GroupId"] for group in ec2.describe_security_groups()["SecurityGroups"]]
        roles = [role["RoleName"] for role in iam.list_roles()["Roles"]]
        return sorted([*groups, *roles])

    before = there()
    bootstrapped(stack.config)
    assert there() == before
    (group,) = ec2.describe_security_groups(GroupIds=[stack.group])["SecurityGroups"]
    from_outside = [rule for rule in group["IpPermissions"] if rule["IpRanges"]]
    assert [(rule["FromPort"], rule["ToPort"], rule["IpRanges"]) for rule in from_outside] == [
        (22, 22, [{"CidrIp": CIDR}])
    ]
    inside = [pair["GroupId"] for rule in group["IpPermissions"] for pair in rule["UserIdGroupPairs"]]
    assert inside == [stack.group]


def test_training_nodes_are_next_to_each_other_with_efa_on_four_cards(stack: Stack) -> None:
    given = bootstrapped(stack.config)["available_node_types"]["a100"]["node_config"]
    assert given["Placement"] == {"GroupName": "altdiffusion"}
    cards = given["NetworkInterfaces"]
    assert [(card["NetworkCardIndex"], card["DeviceIndex"]) for card in cards] == [(0, 0), (1, 1), (2, 1), (3, 1)]
    assert {card["InterfaceType"] for card in cards} == {"efa"}
    text = (ROOT / "deploy/aws/stack.yaml").read_text()  # moto has no placement groups
    assert "Properties: {GroupName: !Ref Name, Strategy: cluster}" in text


def rights(role: str) -> list[dict[str, Any]]:
    """Return the statements of all policies of a role, actions and resources as lists."""
    iam = boto3.client("iam", REGION)
    documents = [
        iam.get_role_policy(RoleName=role, PolicyName=name)["PolicyDocument"]
        for name in iam.list_role_policies(RoleName=role)["PolicyNames"]
    ]
    for policy in iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"]:
        version = iam.get_policy(PolicyArn=policy["PolicyArn"])["Policy"]["DefaultVersionId"]
        found = iam.get_policy_version(PolicyArn=policy["PolicyArn"], VersionId=version)
        documents.append(found["PolicyVersion"]["Document"])
    statements = []
    for document in documents:
        document = yaml.safe_load(document) if isinstance(document, str) else document  # moto keeps a repr
        for statement in document["Statement"]:
            lists = {key: [value] if isinstance(value, str) else value for key, value in statement.items()}
            statements.append({**statement, "Action": lists["Action"], "Resource": lists["Resource"]})
    return statements


def may(role: str, action: str, resource: str) -> bool:
    """Return whether a role may do something without regard to conditions."""
    return any(
        any(fnmatch.fnmatchcase(action, given) for given in statement["Action"])
        and any(fnmatch.fnmatchcase(resource, given) for given in statement["Resource"])
        for statement in rights(role)
        if statement["Effect"] == "Allow"
    )


def pull_only_the_image(stack: Stack, role: str) -> None:
    """Check that a role may pull from the repository of the file's image, and neither from another one nor push."""
    registry, _, name = stack.config["docker"]["image"].partition("/")
    (repository,) = boto3.client("ecr", REGION).describe_repositories()["repositories"]
    assert repository["repositoryUri"] == f"{registry}/{name.partition(':')[0]}"
    for action in ("ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer", "ecr:BatchCheckLayerAvailability"):
        assert may(role, action, repository["repositoryArn"]) and not may(
            role, action, repository["repositoryArn"] + "x"
        )
    assert not may(role, "ecr:PutImage", repository["repositoryArn"])


def test_roles_have_the_least_rights_that_work(stack: Stack) -> None:
    lake = f"arn:aws:s3:::{BUCKET}/lake/datasets/images/head.json"
    instance = f"arn:aws:ec2:{REGION}:{ACCOUNT}:instance/i-0123456789abcdef0"
    for role in ("altdiffusion-head", "altdiffusion-worker"):
        for action in ("s3:GetObject", "s3:PutObject", "s3:DeleteObject"):
            assert may(role, action, lake) and not may(role, action, "arn:aws:s3:::other/lake/x")
        assert may(role, "s3:ListBucket", f"arn:aws:s3:::{BUCKET}")
        assert not any(action == "*" or action.endswith(":*") for one in rights(role) for action in one["Action"])
        assert not may(role, "iam:PassRole", f"arn:aws:iam::{ACCOUNT}:role/altdiffusion-head")
        assert not may(role, "iam:CreateRole", f"arn:aws:iam::{ACCOUNT}:role/x")
        pull_only_the_image(stack, role)
    assert may("altdiffusion-head", "iam:PassRole", f"arn:aws:iam::{ACCOUNT}:role/altdiffusion-worker")
    for action in ("ec2:RunInstances", "ec2:TerminateInstances"):
        assert may("altdiffusion-head", action, instance) and not may("altdiffusion-worker", action, instance)
        (statement,) = [
            one for one in rights("altdiffusion-head")
            if action in one["Action"] and any(":instance/" in resource for resource in one["Resource"])
        ]  # fmt: skip
        assert stack.config["cluster_name"] in json.dumps(statement["Condition"])


def test_mlflow_is_reached_by_the_nodes_alone_and_has_no_password_in_a_file(stack: Stack) -> None:
    ec2 = boto3.client("ec2", REGION)
    vpc = ec2.describe_subnets(SubnetIds=[stack.subnet])["Subnets"][0]["VpcId"]
    other = ec2.create_subnet(VpcId=vpc, CidrBlock="10.0.16.0/20", AvailabilityZone=f"{REGION}b")["Subnet"]["SubnetId"]
    node = stack.config["available_node_types"]["head"]["node_config"]
    given = {"VpcId": vpc, "SubnetId": stack.subnet, "OtherSubnetId": other, "SecurityGroup": stack.group,
             "Ami": node["ImageId"], "Image": stack.config["docker"]["image"], "Bucket": BUCKET}  # fmt: skip
    template = (ROOT / "deploy/aws/mlflow.yaml").read_text()
    settings = "{{GenerateSecretString: {{PasswordLength: 40, ExcludePunctuation: true}}}}"
    secret = f"  {{}}:\n    Type: AWS::SecretsManager::Secret\n    Properties: {settings}\n"
    secrets = boto3.client("secretsmanager", REGION)
    for name in ("Password", "Admin", "Flask"):  # which moto's CloudFormation cannot make
        assert secret.format(name) in template
        template = template.replace(secret.format(name), "")
        template = template.replace("Parameters:\n", f"Parameters:\n  {name}: {{Type: String}}\n", 1)
        given[name] = secrets.create_secret(Name=name, SecretString=uuid.uuid4().hex)["ARN"]
    boto3.client("cloudformation", REGION).create_stack(
        StackName="altdiffusion-mlflow",
        TemplateBody=template,
        Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in given.items()],
        Capabilities=["CAPABILITY_NAMED_IAM"],
    )
    (role,) = [
        one["RoleName"] for one in boto3.client("iam", REGION).list_roles()["Roles"] if "-mlflow-" in one["RoleName"]
    ]
    pull_only_the_image(stack, role)
    (database,) = boto3.client("rds", REGION).describe_db_instances()["DBInstances"]
    assert database["StorageEncrypted"] and not database["PubliclyAccessible"] and database["DBName"] == "mlflow"
    (instance,) = [
        one
        for reservation in ec2.describe_instances()["Reservations"]
        for one in reservation["Instances"]
    ]  # fmt: skip
    groups = {group["GroupId"]: group for group in ec2.describe_security_groups()["SecurityGroups"]}
    (server,) = [group["GroupId"] for group in groups.values() if group["Description"].startswith("MLflow")]
    assert "SecurityGroupIds: [!Ref Server]" in template  # moto leaves them out
    (rule,) = groups[server]["IpPermissions"]
    assert rule["FromPort"] == rule["ToPort"] == 5000 and not rule["IpRanges"]
    assert [pair["GroupId"] for pair in rule["UserIdGroupPairs"]] == [stack.group]
    assert "VPCSecurityGroups: [!Ref Database]" in template
    (rule,) = [one for group in groups.values() for one in group["IpPermissions"] if one.get("FromPort") == 5432]
    assert [pair["GroupId"] for pair in rule["UserIdGroupPairs"]] == [server] and not rule["IpRanges"]
    encoded = ec2.describe_instance_attribute(InstanceId=instance["InstanceId"], Attribute="userData")
    script = base64.b64decode(encoded["UserData"]["Value"]).decode()
    subprocess.run(["bash", "-n"], input=script.encode(), check=True)
    for name in ("Password", "Admin", "Flask"):
        value = secrets.get_secret_value(SecretId=name)["SecretString"]
        assert given[name] in script and value not in script


def test_what_is_mounted_is_small_and_below_home(stack: Stack) -> None:
    """Ray copies mounts as an ordinary user before any command, and hashes each file of them on every `ray up`."""
    mounts = stack.config["file_mounts"]
    assert mounts and all(target.startswith("~/") for target in mounts)
    assert not [source for source in mounts.values() if os.path.isdir(os.path.expanduser(source))]


@pytest.fixture()
def host_folder() -> Iterator[Path]:
    """Give a folder whose parents another user may enter, which pytest's are not."""
    with tempfile.TemporaryDirectory(prefix="fake-host-", dir="/tmp") as folder:
        yield Path(folder)


def updated(config: Config, host: FakeHost, node_type: str) -> str:
    """Bring a node up as `ray up` and the autoscaler do; return the status that its tags state."""
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    is_head = node_type == config["head_node_type"]
    name = f"test-{uuid.uuid4().hex}"  # the host's folder for mounts bears it
    settings = copy.deepcopy(config["available_node_types"][node_type]["node_config"])
    (node,) = provider._create_node(settings, {TAG_RAY_NODE_KIND: "head" if is_head else "worker"}, 1)
    kind = "head" if is_head else "worker"
    ec2 = boto3.client("ec2", REGION)

    def set_node_tags(node: str, tags: dict[str, str]) -> None:  # Ray's own waits for other nodes' tags, in threads
        ec2.create_tags(Resources=[node], Tags=[{"Key": key, "Value": value} for key, value in tags.items()])

    provider.set_node_tags = set_node_tags
    updater = NodeUpdater(
        node_id=node,
        provider_config=config["provider"],
        provider=provider,
        auth_config=config["auth"],
        cluster_name=name,
        file_mounts=config["file_mounts"],
        initialization_commands=config["initialization_commands"],
        setup_commands=[*config["setup_commands"], *config[f"{kind}_setup_commands"]],
        ray_start_commands=config[f"{kind}_start_ray_commands"],
        runtime_hash="hash",
        file_mounts_contents_hash="hash",
        is_head_node=is_head,
        docker_config=config["docker"],
        process_runner=host,
    )
    try:
        updater.run()
    finally:
        shutil.rmtree(f"/tmp/ray_tmp_mount/{name}", ignore_errors=True)
    (found,) = boto3.client("ec2", REGION).describe_instances(InstanceIds=[node])["Reservations"]
    tags = {tag["Key"]: tag["Value"] for tag in found["Instances"][0]["Tags"]}
    return tags["ray-node-status"]


@pytest.mark.skipif(os.geteuid() != 0, reason="commands are run as another user, which root alone can do")
@pytest.mark.parametrize("node_type", ["head", "a100"])
def test_the_updater_brings_a_node_up(stack: Stack, tmp_path: Path, host_folder: Path, node_type: str) -> None:
    token = tmp_path / ".ray/auth_token"
    token.parent.mkdir()
    token.write_text("0123456789abcdef" * 4)
    token.chmod(0o600)
    config = bootstrapped(stack.config)
    host = FakeHost(host_folder, config["docker"]["image"])
    assert updated(config, host, node_type) == "up-to-date"
    arrived = host.container_home / ".ray/auth_token"
    assert arrived.read_text() == token.read_text() and stat.S_IMODE(arrived.stat().st_mode) == 0o600
    start = host.calls[-1]
    assert start.startswith("ray start") and start.endswith("RAY_AUTH_MODE=token XDG_CACHE_HOME=/mnt/local/cache")
    assert ("--head" in start) == (node_type == "head") and "--object-spilling-directory=/mnt/local" in start
    run = next(call for call in host.calls if call.startswith("docker run"))
    assert config["docker"]["image"] in run and "--net" in run and "/mnt/local:/mnt/local" in run


@pytest.mark.skipif(os.geteuid() != 0, reason="commands are run as another user, which root alone can do")
def test_a_mount_that_the_user_cannot_write_fails_in_this_harness(
    stack: Stack, tmp_path: Path, host_folder: Path
) -> None:
    """As /opt and /run/secrets did without a container: Ray copies mounts before any command."""
    (tmp_path / "token").write_text("x")
    config = bootstrapped(stack.config)
    config["docker"], config["file_mounts"] = None, {"/opt/altdiffusion/token": str(tmp_path / "token")}
    assert updated(config, FakeHost(host_folder, ""), "head") == "update-failed"
