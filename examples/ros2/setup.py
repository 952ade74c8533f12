"""Installs the package into a ROS 2 workspace; colcon calls it."""

from setuptools import setup

setup(
    name="refusion_ros",
    version="0.1.0",
    packages=["refusion_ros"],
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/refusion_ros"]),
        ("share/refusion_ros", ["package.xml"]),
        ("share/refusion_ros/launch", ["launch/fusion.launch.py"]),
    ],
    install_requires=["setuptools", "refusion-edge"],
    entry_points={"console_scripts": ["fusion = refusion_ros.node:main"]},
)
