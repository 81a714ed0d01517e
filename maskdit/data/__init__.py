"""Data: sources of records, transforms of images, and the loader that makes batches of them.

A source is any object that follows `maskdit.data.source.Source`: `Emoji` (ships with the library), `Folder`, `TFDS`,
`ArrayRecord`, or a class of your own. `maskdit.data.loader.Loader` turns a source into batches,
of its images or of the latents that `maskdit encode` has made of them.
"""
