"""The data set that ships with the library: `emoji64.npz`, described in README.md, licences in LICENSES.txt."""
