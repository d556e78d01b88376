"""Gloo is told the interface that Ray uses, and what a user says wins."""

import os

import psutil
import ray.util

from pipelines.cluster.network import Backend, OverRaysNetwork, choose_interface


def test_the_interface_is_that_of_rays_address(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "")  # so that it is put back afterwards
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    choose_interface()
    chosen = os.environ["GLOO_SOCKET_IFNAME"]
    assert ray.util.get_node_ip_address() in [a.address for a in psutil.net_if_addrs()[chosen]]


def test_an_interface_that_is_named_stays(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "mine0")
    choose_interface()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "mine0"


def test_ray_train_takes_our_backend_with_its_own_settings():
    config = OverRaysNetwork(timeout_s=7)
    assert (config.backend_cls, config.timeout_s) == (Backend, 7)
