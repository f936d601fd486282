// Package house holds the tests that keep the house in order: which package
// may import which (the floors), what is pure, one package comment in each
// folder, files of a size that can be read at once, names that say something.
// Each rule stands here with its reason, which is what a broken rule prints.
package house
