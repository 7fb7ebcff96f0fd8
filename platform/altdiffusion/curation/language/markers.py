"""Small words that languages without a list use all the time, and the listed language nearest to them does not.

A list shows that a word is Dutch, and most words of Afrikaans are; what sets a text apart are its function words. So
each group of neighbours (`word_lists.nearest`) has some: written from grammars, spelled as the letters are cut
(`d'omu` is two words), none of them among the more frequent words of the neighbour (a test holds that).
"""

from __future__ import annotations

MARKERS: dict[tuple[str, ...], str] = {
    ("nl",): (
        "nie hulle baie hy jy julle hierdie daardie asook sodat nuwe saam altyd tyd besig skryf sy kry bly wêreld "
        "môre hê gewees moes sien gesê sê kinders meisie seun swart blou rooi sewe nege agt vyf eers watter hoekom "
        "vinnig maklik byvoorbeeld tydens sonder binne buite agter mense soos prys "  # af
        "yn foar troch wurdt gjin oare oan hawwe wêze "  # fy
        "nich vun för hett warrt dör sünd keen jümmer schall mutt wesen weern"  # nds
    ),
    ("de",): (
        "vun déi gëtt huet fir datt säi seng awer kee géint wéi ginn "  # lb
        "isch nöd gsi uf hät nid vo öppis "  # als
        "ned wos hod oiss dea"  # bar
    ),
    ("es",): (
        "ye nel nun foi yera tamién esti tien xente pel pola comu fai nes unu daqué "  # ast
        "iste ista istos toz chent dende bels ixe ixa ixo "  # an
        "ke kon kada kualker"  # lad
    ),
    ("pt", "es"): (
        "unha dunha nunha xa moi máis tamén aínda cando calquera coa coas súa súas nin entón sexa sexan estea "
        "teñen dúas"
    ),
    ("ca", "fr"): "aquò foguèt siá pòt aquel aquela aqueste dempuèi tanben nòstre nòstra aqueles",
    ("it",): (
        "hè ùn chì cù sò ellu elli tuttu nantu issu quessu ancu avà sianu ghjè pè "  # co
        "nuddu sunnu havi chiddu chidda chissu macari "  # scn
        "xe ła gà tuti nissun anca "  # vec
        "ëd dij dël ij òm "  # pms
        "totu dogna cun sunt issos "  # sc
        "cchiù ogne nisciuno chesto "  # nap
        "mintga ina betg cunter "  # rm
        "ancje jessi dut cence chel "  # fur
        "unn òmmo tùtti ciù"  # lij
    ),
    ("fr",): "nén avou dji esse cisse moun chak kapab pou fèt anpil chés tertous",
    ("hi",): (
        "बा कवनो होखे अउर खातिर ओकरा सकेला होई केहू आपन कइल हवे "  # bh
        "हई ओकर कोय हथिन "  # mag
        "अछि केँ सँ छल नहि एहि छथि सभ कोनो "  # mai
        "छ पनि हुन्छ गर्न भएको गरेको हुने लागि "  # ne
        "आहे आणि आहेत च्या नाही त्याच्या करण्यात असे "  # mr
    ),
    ("tr",): "və üçün ilə hər üçin bolan ýa bolup içün olğan içindä lääzım bunnar",
    ("ru", "uk"): "ў гэта гэты гэтай якая якія што таксама яго яе пры пасля каб сваё",
    ("en",): "tae aw frae fowk ither nae ane thir thaim thair whaur whit maun ilka mair atween efter gey",
}
"""The markers, by the lists that a group of labels is nearest to."""
