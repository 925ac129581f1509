"""What the bodies of a scene look like, for programs that draw them without the simulator."""

from __future__ import annotations

import math
from typing import Any

import trimesh
from trimesh.visual import TextureVisuals
from trimesh.visual.material import PBRMaterial

MAX_FACES = 3000
"""Of a mesh with one colour. Go2 has meshes of 60,000, and 400,000 in all: 16 MB to send, and much to draw."""
SHARP_RAD = math.radians(60)
"""Faces that meet at a larger angle have an edge between them; others are shaded as one surface."""


def glb(link: Any) -> bytes:
    """The shapes of one of Genesis' links as a binary glTF in the link's frame; empty where it has none.

    What collides stands in for what is to be seen where the link has only that.
    """
    scene = trimesh.Scene()
    for geom in link.vgeoms or link.geoms:
        mesh = _simplified(geom.trimesh)
        pose = trimesh.transformations.quaternion_matrix(geom.init_quat)
        pose[:3, 3] = geom.init_pos
        mesh.apply_transform(pose)
        scene.add_geometry(mesh)
    return bytes(scene.export(file_type="glb")) if scene.geometry else b""


def _simplified(mesh: Any) -> trimesh.Trimesh:
    """A copy with fewer faces, if it has many. One with a picture on it, or in several colours, stays as it is."""
    colors = mesh.visual.vertex_colors if mesh.visual.kind == "vertex" else None
    if colors is None or (colors != colors[0]).any():
        return mesh.copy()
    bare = trimesh.Trimesh(mesh.vertices, mesh.faces)  # merges what differs in the normals alone
    if len(bare.faces) > MAX_FACES:
        bare = bare.simplify_quadric_decimation(face_count=MAX_FACES)
    shaded = trimesh.graph.smooth_shade(bare, angle=SHARP_RAD)
    material = PBRMaterial(baseColorFactor=_linear(colors[0]), metallicFactor=0.0, roughnessFactor=0.6)
    shaded.visual = TextureVisuals(material=material)
    return shaded


def _linear(color: Any) -> list[int]:
    """A colour of a screen, 0 to 255 with its opacity, as glTF has it: proportional to the light."""
    *rgb, opacity = (int(value) for value in color)
    return [*(round(255 * (value / 255) ** 2.2) for value in rgb), opacity]
