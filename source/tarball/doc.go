// Package tarball turns an archive into a folder.
package tarball
