package main

import (
	"crypto/sha1" //nolint:gosec // SPDX wants it for each file
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"
)

// The words of SPDX 2.3 (spdx.github.io/spdx-spec/v2.3) that are used here.
type spdxDocument struct {
	SPDXVersion       string             `json:"spdxVersion"`
	DataLicense       string             `json:"dataLicense"`
	SPDXID            string             `json:"SPDXID"`
	Name              string             `json:"name"`
	DocumentNamespace string             `json:"documentNamespace"`
	CreationInfo      spdxCreation       `json:"creationInfo"`
	Packages          []spdxPackage      `json:"packages"`
	Files             []spdxFile         `json:"files"`
	Relationships     []spdxRelationship `json:"relationships"`
}

type spdxCreation struct {
	Created  string   `json:"created"`
	Creators []string `json:"creators"`
}

type spdxPackage struct {
	SPDXID           string         `json:"SPDXID"`
	Name             string         `json:"name"`
	VersionInfo      string         `json:"versionInfo"`
	Supplier         string         `json:"supplier"`
	DownloadLocation string         `json:"downloadLocation"`
	FilesAnalyzed    bool           `json:"filesAnalyzed"`
	Verification     *spdxCode      `json:"packageVerificationCode,omitempty"`
	LicenseConcluded string         `json:"licenseConcluded"`
	LicenseDeclared  string         `json:"licenseDeclared"`
	CopyrightText    string         `json:"copyrightText"`
	Comment          string         `json:"comment,omitempty"`
	ExternalRefs     []spdxExternal `json:"externalRefs"`
}

// spdxCode stands for the files of a package: one that has files has to have it.
type spdxCode struct {
	Value    string   `json:"packageVerificationCodeValue"`
	Excluded []string `json:"packageVerificationCodeExcludedFiles"`
}

type spdxExternal struct {
	Category string `json:"referenceCategory"`
	Type     string `json:"referenceType"`
	Locator  string `json:"referenceLocator"`
}

type spdxFile struct {
	SPDXID             string         `json:"SPDXID"`
	FileName           string         `json:"fileName"`
	FileTypes          []string       `json:"fileTypes"`
	Checksums          []spdxChecksum `json:"checksums"`
	LicenseConcluded   string         `json:"licenseConcluded"`
	LicenseInfoInFiles []string       `json:"licenseInfoInFiles"`
	CopyrightText      string         `json:"copyrightText"`
}

type spdxChecksum struct {
	Algorithm string `json:"algorithm"`
	Value     string `json:"checksumValue"`
}

type spdxRelationship struct {
	From string `json:"spdxElementId"`
	Type string `json:"relationshipType"`
	To   string `json:"relatedSpdxElement"`
}

// sbomName is where the package has it.
var sbomName = doc("liveupd.spdx.json")

// sbom says what the package is made of: its files, and the modules in each program. All else
// has to be in the tree by then.
func (b *build) sbom() ([]byte, error) {
	const self = "SPDXRef-Package-liveupd"
	d := spdxDocument{
		SPDXVersion: "SPDX-2.3", DataLicense: "CC0-1.0", SPDXID: "SPDXRef-DOCUMENT",
		Name: fmt.Sprintf("liveupd_%s_%s", b.release.debian(), b.arch),
		CreationInfo: spdxCreation{
			Created: b.release.time.Format(time.RFC3339), Creators: []string{"Tool: liveupd-packaging-deb"},
		},
		Relationships: []spdxRelationship{{"SPDXRef-DOCUMENT", "DESCRIBES", self}},
		Packages: []spdxPackage{{
			SPDXID: self, Name: "liveupd", VersionInfo: b.release.debian(), Supplier: "Organization: liveupd", DownloadLocation: "NOASSERTION",
			LicenseConcluded: "Apache-2.0", LicenseDeclared: "Apache-2.0", CopyrightText: "NOASSERTION",
			ExternalRefs: []spdxExternal{{"PACKAGE-MANAGER", "purl", fmt.Sprintf("pkg:deb/liveupd@%s?arch=%s", purlVersion(b.release.debian()), b.arch)}},
		}},
	}
	all := sha256.New()
	var sums []string
	for _, name := range b.tree.names() {
		if b.tree[name].link != "" || b.tree[name].dir {
			continue
		}
		content, err := b.tree[name].read()
		if err != nil {
			return nil, err
		}
		all.Write(content)
		sum := fmt.Sprintf("%x", sha1.Sum(content)) //nolint:gosec // see above
		sums = append(sums, sum)
		file := spdxFile{
			SPDXID: fileID(name), FileName: "./" + name, FileTypes: []string{"OTHER"},
			Checksums:        []spdxChecksum{{"SHA1", sum}, {"SHA256", fmt.Sprintf("%x", sha256.Sum256(content))}},
			LicenseConcluded: "NOASSERTION", LicenseInfoInFiles: []string{"NOASSERTION"}, CopyrightText: "NOASSERTION",
		}
		if programPlaces[path.Base(name)] == path.Dir(name) {
			file.FileTypes = []string{"BINARY"}
		}
		d.Files = append(d.Files, file)
		d.Relationships = append(d.Relationships, spdxRelationship{self, "CONTAINS", file.SPDXID})
	}
	// The specification's section 7.9: the sorted digests in one line, and the digest of that.
	slices.Sort(sums)
	d.Packages[0].FilesAnalyzed = true
	d.Packages[0].Verification = &spdxCode{
		fmt.Sprintf("%x", sha1.Sum([]byte(strings.Join(sums, "")))), []string{"./" + sbomName}, //nolint:gosec // see above
	}
	for _, m := range b.modules {
		id := "SPDXRef-Module-" + strings.NewReplacer("/", "-", "_", "-").Replace(m.path)
		p := spdxPackage{
			SPDXID: id, Name: m.path, VersionInfo: m.version, Supplier: "NOASSERTION",
			DownloadLocation: fmt.Sprintf("https://proxy.golang.org/%s/@v/%s.zip", escaped(m.path), m.version),
			LicenseConcluded: m.expression(), LicenseDeclared: m.expression(), CopyrightText: strings.Join(m.holders, "\n"),
			ExternalRefs: []spdxExternal{{"PACKAGE-MANAGER", "purl", "pkg:golang/" + m.path + "@" + purlVersion(m.version)}},
		}
		if m.path == "std" {
			p.DownloadLocation = "https://go.dev/dl/go" + m.version + ".src.tar.gz"
		}
		if m.sum != "" {
			p.Comment = "go.sum: " + m.sum
		}
		d.Packages = append(d.Packages, p)
		for _, program := range m.programs {
			d.Relationships = append(d.Relationships, spdxRelationship{fileID(path.Join(programPlaces[program], program)), "STATIC_LINK", id})
		}
	}
	d.DocumentNamespace = fmt.Sprintf("%s/spdx/%s-%x", homepage, d.Name, all.Sum(nil)[:16])
	out, err := json.MarshalIndent(d, "", "  ")
	return append(out, '\n'), err
}

// fileID names a file of the package in the document.
func fileID(name string) string {
	return "SPDXRef-File-" + strings.NewReplacer("/", "-", "_", "-").Replace(name)
}

// purlVersion is a version as a package URL has it: percent-encoded.
func purlVersion(v string) string {
	return strings.NewReplacer("+", "%2B", "~", "~").Replace(v)
}

// escaped is a module's path as the module proxy has it: an upper-case letter is "!" and the lower one.
func escaped(p string) string {
	var out strings.Builder
	for _, c := range p {
		if c >= 'A' && c <= 'Z' {
			out.WriteByte('!')
			c += 'a' - 'A'
		}
		out.WriteRune(c)
	}
	return out.String()
}
