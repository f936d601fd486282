//go:build !amd64 && !arm64

package sys

// callTables: what is barred elsewhere is for who can try it there.
var callTables []callTable
