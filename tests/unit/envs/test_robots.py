"""A robot's URDF as the simulator gets it."""

from pathlib import Path
from xml.etree import ElementTree

from ppo_lab.envs.robots import asset, without_looks

MESH = '<geometry><mesh filename="{}"/></geometry>'
LOOKS = f"<visual>{MESH.format('shiny.dae')}</visual>"


def urdf(folder: Path, *links: str) -> Path:
    path = folder / "robot.urdf"
    inside = "".join(f'<link name="link_{number}">{link}</link>' for number, link in enumerate(links))
    path.write_text(f'<robot name="robot">{inside}</robot>')
    return path


def test_what_only_cameras_see_is_left_out_of_links_that_collide(tmp_path: Path) -> None:
    collides = f"<collision>{MESH.format('hull.stl')}</collision>"
    told = ElementTree.fromstring(without_looks(urdf(tmp_path, LOOKS + collides, LOOKS)))
    one, other = told.iter("link")
    assert [element.tag for element in one] == ["collision"]
    assert [element.tag for element in other] == ["visual"], "its mass may be estimated from it"


def test_meshes_that_stay_are_found_from_any_folder(tmp_path: Path) -> None:
    meshes = (MESH.format(name) for name in ("/abs/hull.stl", "../hull.stl"))
    elsewhere = "".join(f"<collision>{mesh}</collision>" for mesh in meshes)
    told = ElementTree.fromstring(without_looks(urdf(tmp_path, elsewhere)))
    assert [mesh.get("filename") for mesh in told.iter("mesh")] == ["/abs/hull.stl", f"{tmp_path}/../hull.stl"]


def test_a_urdf_whose_meshes_genesis_itself_has_to_find_stays_a_path(tmp_path: Path) -> None:
    path = urdf(tmp_path, f"{LOOKS}<collision>{MESH.format('package://robot/hull.stl')}</collision>")
    assert without_looks(path) == str(path)


def test_go2_without_looks_has_no_mesh_to_load_and_the_same_links_joints_and_masses() -> None:
    path = asset("urdf/go2/urdf/go2.urdf")
    whole, told = ElementTree.parse(path).getroot(), ElementTree.fromstring(without_looks(path))
    assert len(list(whole.iter("mesh"))) == 17
    assert list(told.iter("mesh")) == []
    for tag in ("link", "joint", "inertial", "collision", "limit"):
        assert sum(1 for _ in told.iter(tag)) == sum(1 for _ in whole.iter(tag)) > 0
