"""What cameras see of a robot, with fewer triangles: software OpenGL draws it several times as fast."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fast_simplification
import trimesh
from genesis.ext import urdfpy

SHARE, FEWEST = 12, 300
"""A mesh keeps one triangle of so many, and so many at least."""
SHARPNESS = 5
"""Up to which the shape may change for it, of 0 to 8: Genesis' aggressiveness of a decimation."""


def simplified(urdf: Path) -> Any:
    """The URDF at `urdf` as Genesis takes it, with simpler meshes for cameras; its path where it is not that plain.

    What touches something stays as it is. So do the looks of a link that has no shape to collide with, from which
    Genesis may estimate its mass.
    """
    if urdf.suffix != ".urdf":
        return str(urdf)
    robot = urdfpy.URDF.load(str(urdf))
    shapes = [(link, shape) for link in robot.links for shape in (*link.collisions, *link.visuals)]
    for link, shape in shapes:
        if (mesh := shape.geometry.mesh) is not None:
            if "://" in mesh.filename:
                return str(urdf)
            mesh.filename = str(urdf.parent / mesh.filename)  # the object has no folder of its own
            if link.collisions and shape in link.visuals:
                mesh.meshes = [_simplified(part) for part in mesh.meshes]
    return robot


def _simplified(mesh: trimesh.Trimesh) -> trimesh.Trimesh:
    """The mesh in the colour of its material; one with colours or a texture of its own is left as it is."""
    count = max(FEWEST, len(mesh.faces) // SHARE)
    material = getattr(mesh.visual, "material", None)
    visual: Any = mesh.visual
    has_more = visual.defined if material is None else getattr(material, "image", None) is not None
    if count >= len(mesh.faces) or has_more:
        return mesh
    merged = trimesh.Trimesh(mesh.vertices, mesh.faces)
    merged.merge_vertices()
    parts = fast_simplification.simplify(merged.vertices, merged.faces, target_count=count, agg=SHARPNESS)
    looks = material and trimesh.visual.TextureVisuals(material=material)
    return trimesh.Trimesh(vertices=parts[0], faces=parts[1], process=False, visual=looks)
