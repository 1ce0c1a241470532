"""The papers behind the laws, steppers and theorems, each under one key."""

from dataclasses import dataclass

from equipoise.arguments import checked
from equipoise.errors import InputError


@dataclass(frozen=True)
class Reference:
    """A paper, printable as BibTeX."""

    key: str
    authors: str
    title: str
    venue: str
    year: int
    url: str

    def bibtex(self) -> str:
        """The entry as BibTeX.

        >>> print(REFERENCES["le2022training"].bibtex().splitlines()[0])
        @misc{le2022training,
        """
        fields = {
            "author": self.authors,
            "title": self.title,
            "note": self.venue,
            "year": str(self.year),
            "url": self.url,
        }
        body = ",\n".join(f"  {name} = {{{text}}}" for name, text in fields.items())
        return f"@misc{{{self.key},\n{body}\n}}"


REFERENCES: dict[str, Reference] = {
    reference.key: reference
    for reference in [
        Reference(
            "le2022training",
            "Thien Le and Stefanie Jegelka",
            "Training invariances and the low-rank phenomenon: beyond linear networks",
            "ICLR",
            2022,
            "https://arxiv.org/abs/2201.11968",
        ),
        Reference(
            "du2018algorithmic",
            "Simon S. Du and Wei Hu and Jason D. Lee",
            "Algorithmic regularization in learning deep homogeneous models: layers are automatically balanced",
            "NeurIPS",
            2018,
            "https://arxiv.org/abs/1806.00900",
        ),
        Reference(
            "ji2019gradient",
            "Ziwei Ji and Matus Telgarsky",
            "Gradient descent aligns the layers of deep linear networks",
            "ICLR",
            2019,
            "https://arxiv.org/abs/1810.02032",
        ),
        Reference(
            "lyu2020gradient",
            "Kaifeng Lyu and Jian Li",
            "Gradient descent maximizes the margin of homogeneous neural networks",
            "ICLR",
            2020,
            "https://arxiv.org/abs/1906.05890",
        ),
        Reference(
            "ji2020directional",
            "Ziwei Ji and Matus Telgarsky",
            "Directional convergence and alignment in deep learning",
            "NeurIPS",
            2020,
            "https://arxiv.org/abs/2006.06657",
        ),
        Reference(
            "schechtman2025late",
            "Sholom Schechtman and Nicolas Schreuder",
            "The late-stage training dynamics of (stochastic) subgradient descent on homogeneous neural networks",
            "COLT",
            2025,
            "https://arxiv.org/abs/2502.05668",
        ),
        Reference(
            "chen2024towards",
            "Ke Chen and Chugang Yi and Haizhao Yang",
            "Towards better generalization: weight decay induces low-rank bias for neural networks",
            "arXiv",
            2024,
            "https://arxiv.org/abs/2410.02176",
        ),
        Reference(
            "yu2023generator",
            "Runpeng Yu and Xinchao Wang",
            "Generator born from classifier",
            "NeurIPS",
            2023,
            "https://arxiv.org/abs/2312.02470",
        ),
        Reference(
            "galanti2023sgd",
            "Tomer Galanti and Zachary S. Siegel and Aparna Gupte and Tomaso Poggio",
            "SGD and weight decay provably induce a low-rank bias in deep neural networks",
            "CBMM Memo 140",
            2023,
            "https://hdl.handle.net/1721.1/148230",
        ),
        Reference(
            "yunis2024grokking",
            "David Yunis and Kumar Kshitij Patel and Samuel Wheeler and Pedro Savarese and Gal Vardi and "
            "Karen Livescu and Michael Maire and Matthew R. Walter",
            "Grokking, rank minimization and generalization in deep learning",
            "ICML Workshop on Mechanistic Interpretability",
            2024,
            "https://arxiv.org/abs/2408.11804",
        ),
        Reference(
            "huh2023low",
            "Minyoung Huh and Hossein Mobahi and Richard Zhang and Brian Cheung and Pulkit Agrawal and Phillip Isola",
            "The low-rank simplicity bias in deep networks",
            "TMLR",
            2023,
            "https://arxiv.org/abs/2103.10427",
        ),
        Reference(
            "davis2020stochastic",
            "Damek Davis and Dmitriy Drusvyatskiy and Sham Kakade and Jason D. Lee",
            "Stochastic subgradient method converges on tame functions",
            "Foundations of Computational Mathematics",
            2020,
            "https://arxiv.org/abs/1804.07795",
        ),
        Reference(
            "marcotte2023abide",
            "Sibylle Marcotte and Rémi Gribonval and Gabriel Peyré",
            "Abide by the law and follow the flow: conservation laws for gradient flows",
            "NeurIPS",
            2023,
            "https://arxiv.org/abs/2307.00144",
        ),
        Reference(
            "mustafa2023gats",
            "Nimrah Mustafa and Aleksandar Bojchevski and Rebekka Burkholz",
            "Are GATs out of balance?",
            "NeurIPS",
            2023,
            "https://arxiv.org/abs/2310.07235",
        ),
        Reference(
            "gonon2024path",
            "Antoine Gonon and Nicolas Brisebarre and Elisa Riccietti and Rémi Gribonval",
            "A path-norm toolkit for modern networks: consequences, promises and challenges",
            "ICLR",
            2024,
            "https://arxiv.org/abs/2310.01225",
        ),
        Reference(
            "timor2022implicit",
            "Nadav Timor and Gal Vardi and Ohad Shamir",
            "Implicit regularization towards rank minimization in ReLU networks",
            "ALT",
            2023,
            "https://arxiv.org/abs/2201.12760",
        ),
        Reference(
            "roy2007effective",
            "Olivier Roy and Martin Vetterli",
            "The effective rank: a measure of effective dimensionality",
            "EUSIPCO",
            2007,
            "https://ieeexplore.ieee.org/document/7098875",
        ),
        Reference(
            "kempf1979length",
            "George Kempf and Linda Ness",
            "The length of vectors in representation spaces",
            "Algebraic Geometry, Springer LNM 732",
            1979,
            "https://doi.org/10.1007/BFb0066647",
        ),
        Reference(
            "nagel2019data",
            "Markus Nagel and Mart van Baalen and Tijmen Blankevoort and Max Welling",
            "Data-free quantization through weight equalization and bias correction",
            "ICCV",
            2019,
            "https://arxiv.org/abs/1906.04721",
        ),
        Reference(
            "ainsworth2023git",
            "Samuel K. Ainsworth and Jonathan Hayase and Siddhartha Srinivasa",
            "Git Re-Basin: merging models modulo permutation symmetries",
            "ICLR",
            2023,
            "https://arxiv.org/abs/2209.04836",
        ),
        Reference(
            "kolb2025deep",
            "Chris Kolb and Tobias Weber and Bernd Bischl and David Rügamer",
            "Deep weight factorization: sparse learning through the lens of artificial symmetries",
            "ICLR",
            2025,
            "https://arxiv.org/abs/2502.02496",
        ),
        Reference(
            "hou2025implicit",
            "Yikun Hou and Suvrit Sra and Alp Yurtsever",
            "Implicit bias in matrix factorization and its explicit realization in a new architecture",
            "arXiv",
            2025,
            "https://arxiv.org/abs/2501.16322",
        ),
        Reference(
            "cosson2022gradient",
            "Romain Cosson and Ali Jadbabaie and Anuran Makur and Amirhossein Reisizadeh and Devavrat Shah",
            "Gradient descent for low-rank functions",
            "arXiv",
            2022,
            "https://arxiv.org/abs/2206.08257",
        ),
        Reference(
            "papyan2020prevalence",
            "Vardan Papyan and X. Y. Han and David L. Donoho",
            "Prevalence of neural collapse during the terminal phase of deep learning training",
            "PNAS",
            2020,
            "https://arxiv.org/abs/2008.08186",
        ),
        Reference(
            "yunis2024approaching",
            "David Yunis and Kumar Kshitij Patel and Samuel Wheeler and Pedro Savarese and Gal Vardi and Karen Livescu "
            "and Michael Maire and Matthew R. Walter",
            "Approaching deep learning through the spectral dynamics of weights",
            "arXiv",
            2024,
            "https://arxiv.org/abs/2408.11804",
        ),
        Reference(
            "zangrando2024neural",
            "Emanuele Zangrando and Piero Deidda and Simone Brugiapaglia and Nicola Guglielmi and Francesco Tudisco",
            "Neural rank collapse: weight decay and small within-class variability yield low-rank bias",
            "arXiv",
            2024,
            "https://arxiv.org/abs/2402.03991",
        ),
        Reference(
            "galanti2022implicit",
            "Tomer Galanti and Liane Galanti and Ido Ben-Shaul",
            "On the implicit bias towards minimal depth of deep neural networks",
            "arXiv",
            2022,
            "https://arxiv.org/abs/2202.09028",
        ),
        Reference(
            "galanti2022sgd",
            "Tomer Galanti and Zachary S. Siegel and Aparna Gupte and Tomaso Poggio",
            "SGD and weight decay secretly minimize the rank of your neural network",
            "arXiv",
            2022,
            "https://arxiv.org/abs/2206.05794",
        ),
        Reference(
            "min2024early",
            "Hancheng Min and Enrique Mallada and René Vidal",
            "Early neuron alignment in two-layer ReLU networks with small initialization",
            "ICLR",
            2024,
            "https://arxiv.org/abs/2307.12851",
        ),
        Reference(
            "min2023convergence",
            "Hancheng Min and René Vidal and Enrique Mallada",
            "On the convergence of gradient flow on multi-layer linear models",
            "ICML",
            2023,
            "https://arxiv.org/abs/2105.06351",
        ),
        Reference(
            "eckart1936approximation",
            "Carl Eckart and Gale Young",
            "The approximation of one matrix by another of lower rank",
            "Psychometrika",
            1936,
            "https://doi.org/10.1007/BF02288367",
        ),
        Reference(
            "jacot2023bottleneck",
            "Arthur Jacot",
            "Bottleneck structure in learned features: low-dimension vs regularity tradeoff",
            "NeurIPS",
            2023,
            "https://arxiv.org/abs/2305.19008",
        ),
        Reference(
            "jacot2023implicit",
            "Arthur Jacot",
            "Implicit bias of large depth networks: a notion of rank for nonlinear functions",
            "ICLR",
            2023,
            "https://arxiv.org/abs/2209.15055",
        ),
        Reference(
            "fan2023deep",
            "Feng-Lei Fan and Wei Huang and Xiangru Zhong and Lecheng Ruan and Tieyong Zeng and Huan Xiong "
            "and Fei Wang",
            "Deep ReLU networks have surprisingly simple polytopes",
            "arXiv",
            2023,
            "https://arxiv.org/abs/2305.09145",
        ),
        Reference(
            "kunin2023asymmetric",
            "Daniel Kunin and Atsushi Yamamura and Chao Ma and Surya Ganguli",
            "The asymmetric maximum margin bias of quasi-homogeneous neural networks",
            "ICLR",
            2023,
            "https://arxiv.org/abs/2210.03820",
        ),
        Reference(
            "garrod2024persistence",
            "Connall Garrod and Jonathan P. Keating",
            "The persistence of neural collapse despite low-rank bias",
            "arXiv",
            2024,
            "https://arxiv.org/abs/2410.23169",
        ),
        Reference(
            "sukenik2024neural",
            "Peter Súkeník and Marco Mondelli and Christoph Lampert",
            "Neural collapse versus low-rank bias: is deep neural collapse really optimal?",
            "NeurIPS",
            2024,
            "https://arxiv.org/abs/2405.14468",
        ),
        Reference(
            "tahmasebi2024universal",
            "Behrooz Tahmasebi and Ashkan Soleymani and Dara Bahri and Stefanie Jegelka and Patrick Jaillet",
            "A universal class of sharpness-aware minimization algorithms",
            "ICML",
            2024,
            "https://arxiv.org/abs/2406.03682",
        ),
        Reference(
            "tahmasebi2023scale",
            "Behrooz Tahmasebi and Ashkan Soleymani and Stefanie Jegelka and Patrick Jaillet",
            "On scale-invariant sharpness measures",
            "NeurIPS workshop",
            2023,
            "https://dblp.org/search?q=On%20Scale-Invariant%20Sharpness%20Measures",
        ),
        Reference(
            "foret2021sharpness",
            "Pierre Foret and Ariel Kleiner and Hossein Mobahi and Behnam Neyshabur",
            "Sharpness-aware minimization for efficiently improving generalization",
            "ICLR",
            2021,
            "https://arxiv.org/abs/2010.01412",
        ),
        Reference(
            "shenouda2024variation",
            "Joseph Shenouda and Rahul Parhi and Kangwook Lee and Robert D. Nowak",
            "Variation spaces for multi-output neural networks",
            "JMLR",
            2024,
            "https://arxiv.org/abs/2305.16534",
        ),
        Reference(
            "behnia2023implicit",
            "Tina Behnia and Ganesh Ramachandra Kini and Vala Vakilian and Christos Thrampoulidis",
            "On the implicit geometry of cross-entropy parameterizations for label-imbalanced data",
            "AISTATS",
            2023,
            "https://arxiv.org/abs/2303.07608",
        ),
        Reference(
            "jadbabaie2023adaptive",
            "Ali Jadbabaie and Anuran Makur and Amirhossein Reisizadeh",
            "Adaptive low-rank gradient descent",
            "IEEE Conference on Decision and Control",
            2023,
            "https://dblp.org/search?q=Adaptive%20Low-Rank%20Gradient%20Descent",
        ),
        Reference(
            "jadbabaie2023federated",
            "Ali Jadbabaie and Anuran Makur and Devavrat Shah",
            "Federated optimization of smooth loss functions",
            "IEEE Transactions on Information Theory",
            2023,
            "https://arxiv.org/abs/2201.01954",
        ),
        Reference(
            "cosson2023low",
            "Romain Cosson and Ali Jadbabaie and Anuran Makur and Amirhossein Reisizadeh and Devavrat Shah",
            "Low-rank gradient descent",
            "IEEE Open Journal of Control Systems",
            2023,
            "https://dblp.org/search?q=Low-Rank%20Gradient%20Descent%20Cosson",
        ),
        Reference(
            "zhang2024when",
            "Yedi Zhang and Andrew Saxe and Peter E. Latham",
            "When are bias-free ReLU networks effectively linear networks?",
            "arXiv",
            2024,
            "https://arxiv.org/abs/2406.12615",
        ),
        Reference(
            "power2022grokking",
            "Alethea Power and Yuri Burda and Harri Edwards and Igor Babuschkin and Vedant Misra",
            "Grokking: generalization beyond overfitting on small algorithmic datasets",
            "arXiv",
            2022,
            "https://arxiv.org/abs/2201.02177",
        ),
        Reference(
            "holland1983stochastic",
            "Paul W. Holland and Kathryn Blackmond Laskey and Samuel Leinhardt",
            "Stochastic blockmodels: first steps",
            "Social Networks",
            1983,
            "https://doi.org/10.1016/0378-8733(83)90021-7",
        ),
        Reference(
            "mixon2022neural",
            "Dustin G. Mixon and Hans Parshall and Jianzong Pi",
            "Neural collapse with unconstrained features",
            "Sampling Theory, Signal Processing, and Data Analysis",
            2022,
            "https://arxiv.org/abs/2011.11619",
        ),
        Reference(
            "dai2021representation",
            "Zhen Dai and Mina Karzand and Nathan Srebro",
            "Representation costs of linear neural networks: analysis and design",
            "NeurIPS",
            2021,
            "https://openreview.net/forum?id=3oQyjABdbC8",
        ),
    ]
}


@checked
def cite(*keys: str) -> str:
    """BibTeX of the named references, or of all of them.

    >>> print(cite("du2018algorithmic").splitlines()[0])
    @misc{du2018algorithmic,

    Raises:
        InputError: for an unknown key.
    """
    unknown = [key for key in keys if key not in REFERENCES]
    if unknown:
        raise InputError(
            expected=f"reference keys among {', '.join(REFERENCES)}",
            found=", ".join(unknown),
            remedy="call cite() for all of them",
        )
    return "\n\n".join(REFERENCES[key].bibtex() for key in keys or REFERENCES)
