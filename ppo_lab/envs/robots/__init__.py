"""Robots: asset, joints, gains and default pose."""
