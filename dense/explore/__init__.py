"""Understanding a backbone by looking: a sheet of an image, and a page on which features are touched.

The package itself can be called: ``dense.explore(images, output)`` is `dense.explore.run.explore`.
"""
